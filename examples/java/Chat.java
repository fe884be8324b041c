import jakarta.servlet.annotation.WebServlet;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.Arrays;
import java.util.Base64;
import java.util.Objects;
import java.util.Optional;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** A chat backend. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens. */
@WebServlet("/realtime")
public class Chat extends HttpServlet {
    private static final byte[] SECRET = Base64.getDecoder().decode(System.getenv("SECRET").substring("whsec_".length()));
    private static final String PUSH_URL = Optional.ofNullable(System.getenv("PUSH_URL")).orElse("http://127.0.0.1:8081");
    private static final byte[] PUSH = "push ".getBytes(StandardCharsets.UTF_8);

    private final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    @Override
    protected void doPost(HttpServletRequest request, HttpServletResponse response) throws IOException {
        byte[] body = request.getInputStream().readAllBytes();
        if (!isSigned(request, body)) {
            response.setStatus(HttpServletResponse.SC_UNAUTHORIZED);
            return;
        }
        response.setContentType("text/plain;charset=UTF-8");
        switch (request.getHeader("ce-type")) {
            case "wsbridge.connect" -> {
                String user = request.getParameter("user"); // yours comes from the session: its cookie is here
                response.setHeader("Ws-Join", "lobby");
                if (user != null) {
                    response.setHeader("Ws-User", user);
                }
                response.getWriter().write("welcome");
            }
            case "wsbridge.message" -> {
                if (Arrays.mismatch(body, PUSH) == PUSH.length) {
                    push(request.getHeader("ce-connectionid"), Arrays.copyOfRange(body, PUSH.length, body.length));
                    response.setStatus(HttpServletResponse.SC_NO_CONTENT);
                } else {
                    String user = Optional.ofNullable(request.getHeader("ce-userid")).orElse("somebody");
                    response.getOutputStream().write((user + ": ").getBytes(StandardCharsets.UTF_8));
                    response.getOutputStream().write(body);
                }
            }
            default -> response.setStatus(HttpServletResponse.SC_NO_CONTENT); // disconnect: the body says why, as JSON
        }
    }

    private static boolean isSigned(HttpServletRequest request, byte[] body) {
        String timestamp = request.getHeader("webhook-timestamp");
        byte[] expected;
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(SECRET, "HmacSHA256"));
            mac.update((request.getHeader("webhook-id") + "." + timestamp + ".").getBytes(StandardCharsets.UTF_8));
            expected = ("v1," + Base64.getEncoder().encodeToString(mac.doFinal(body))).getBytes(StandardCharsets.UTF_8);
        } catch (GeneralSecurityException e) {
            throw new IllegalStateException(e); // every Java has HmacSHA256
        }
        String given = Objects.requireNonNullElse(request.getHeader("webhook-signature"), "");
        return Arrays.stream(given.split(" ")) // several while secrets are rotated
                .anyMatch(one -> MessageDigest.isEqual(expected, one.getBytes(StandardCharsets.UTF_8)))
            && Math.abs(Instant.now().getEpochSecond() - Long.parseLong(timestamp)) <= 300;
    }

    private void push(String connection, byte[] text) throws IOException {
        HttpRequest push = HttpRequest.newBuilder(URI.create(PUSH_URL + "/connections/" + connection))
            .header("Content-Type", "text/plain").POST(BodyPublishers.ofByteArray(text)).build();
        try {
            client.send(push, BodyHandlers.discarding()); // 410: the client has just left
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IOException(e);
        }
    }
}
