import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.annotation.WebFilter;
import jakarta.servlet.http.HttpFilter;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Each event is a line of the file RECORD before the servlet sees it. */
@WebFilter("/*")
public class Record extends HttpFilter {
    @Override
    protected void doFilter(HttpServletRequest request, HttpServletResponse response, FilterChain chain) throws IOException, ServletException {
        String line = request.getHeader("ce-type") + " " + request.getHeader("ce-id") + " " + request.getHeader("ce-attempt") + "\n";
        Files.writeString(Path.of(System.getenv("RECORD")), line, StandardOpenOption.APPEND);
        chain.doFilter(request, response);
    }
}
