package upstream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Every way a connection can end, on real sockets: what was certainly not taken goes out again in every mode but never, what may have been
// taken only with always. The first delivery meets the end, later ones are answered.
func TestEveryEndOfAConnectionIsToldFromTheOthers(t *testing.T) {
	if !certain {
		t.Skip("only Linux tells what was acknowledged")
	}
	large := strings.Repeat("x", 1<<20) // more than the sockets hold
	rows := []struct {
		name   string
		body   string
		reused bool
		end    func(t *testing.T, conn net.Conn, r *bufio.Reader)
		took   bool // the backend may have taken it
	}{
		{"closed before the request", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) {}, false},
		{"reset before the request", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { reset(conn) }, false},
		{"closed without reading it", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { awaitBytes(t, conn, 1); conn.Close() }, false},
		{"reset without reading it", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { awaitBytes(t, conn, 1); reset(conn) }, false},
		{"closed within it", large, true, func(t *testing.T, conn net.Conn, r *bufio.Reader) {
			io.ReadFull(conn, make([]byte, 500_000))
			conn.Close()
		}, true},
		{"reset within it", large, true, func(t *testing.T, conn net.Conn, r *bufio.Reader) {
			io.ReadFull(conn, make([]byte, 500_000))
			reset(conn)
		}, true},
		{"closed behind it", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { receive(r); conn.Close() }, true},
		{"reset behind it", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { receive(r); acknowledge(conn); reset(conn) }, true},
		{"silent behind it", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { receive(r); awaitEnd(t, conn) }, true},
		{"silent before it", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) { awaitEnd(t, conn) }, true},
		{"closed within the answer", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) {
			receive(r)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfre")
			conn.Close()
		}, true},
		{"reset within the answer", "x", true, func(t *testing.T, conn net.Conn, r *bufio.Reader) {
			receive(r)
			io.WriteString(conn, "HTTP/1.1 2")
			reset(conn)
		}, true},
		{"a fresh one, closed without reading the request", "x", false, func(t *testing.T, conn net.Conn, r *bufio.Reader) { awaitBytes(t, conn, 1); conn.Close() }, true},
		{"a fresh one, closed behind it", "x", false, func(t *testing.T, conn net.Conn, r *bufio.Reader) { receive(r); conn.Close() }, true},
	}
	for _, row := range rows {
		for _, mode := range []Retry{RetrySafe, RetryAlways, RetryNever} {
			t.Run(fmt.Sprint(row.name, ", ", mode), func(t *testing.T) {
				t.Parallel()
				try := func() (complaint string) {
					var mu sync.Mutex
					var attempts []string
					first := true
					config := standard(t, listen(t, func(conn net.Conn) {
						r := bufio.NewReader(conn)
						if row.reused {
							mu.Lock()
							warm := first
							mu.Unlock()
							if warm {
								receive(r) // and say that the connection is kept for long, since this machine may be slow
								io.WriteString(conn, strings.Replace(fresh, "\r\n", "\r\nKeep-Alive: timeout=3600\r\n", 1))
							}
						}
						mu.Lock()
						strike := first
						first = false
						mu.Unlock()
						if strike {
							row.end(t, conn, r)
							return
						}
						for {
							p, err := receive(r)
							if err != nil {
								return
							}
							mu.Lock()
							attempts = append(attempts, p.value("ce-attempt"))
							mu.Unlock()
							io.WriteString(conn, fresh)
						}
					}))
					config.Retry, config.Timeout = mode, patience
					if strings.HasPrefix(row.name, "silent") {
						config.Timeout /= 20
					}
					c := newClient(t, config)
					if row.reused {
						if got := said(c.Post(t.Context(), text("before"))); got != "fresh" {
							t.Fatalf("before: got = %s, want fresh", got)
						}
					}
					r := c.Post(t.Context(), text(row.body))
					mu.Lock()
					defer mu.Unlock()
					switch {
					case !row.took: // repeated at once, which is not another attempt
						if said(r) != "fresh" || len(attempts) != 1 || attempts[0] != "1" {
							return fmt.Sprintf("got = %s, with attempts %q behind it, want fresh, with 1", said(r), attempts)
						}
					case mode == RetryAlways:
						if said(r) != "fresh" || len(attempts) != 1 || attempts[0] != "2" {
							return fmt.Sprintf("got = %s, with attempts %q behind it, want fresh, with 2", said(r), attempts)
						}
					default:
						if r.Outcome != Uncertain || len(attempts) != 0 {
							return fmt.Sprintf("got = %s, with attempts %q behind it, want uncertain, with none", said(r), attempts)
						}
					}
					return ""
				}
				complaint := try()
				// The kernel acknowledges what nobody has read after 40 ms. Where this machine took longer to close, a try says nothing.
				for tries := 1; complaint != "" && !row.took && tries < 50; tries++ {
					complaint = try()
				}
				if complaint != "" {
					t.Error(complaint)
				}
			})
		}
	}
}

// A backend may answer before it has read the request, and then read no more of it.
func TestAnAnswerBeforeTheRequestWasReadIsTheAnswer(t *testing.T) {
	for name, end := range map[string]func(*testing.T, net.Conn){
		"and waits":  awaitEnd,
		"and closes": func(t *testing.T, conn net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			c := clientFor(t, listen(t, func(conn net.Conn) {
				awaitBytes(t, conn, 1)
				io.WriteString(conn, "HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\ntoo large")
				if tcp, ok := conn.(*net.TCPConn); ok {
					tcp.CloseWrite()
				}
				end(t, conn)
			}))
			r := c.Post(t.Context(), text(strings.Repeat("x", 8<<20)))
			if r.Outcome != Refused || r.Status != 413 || len(r.Messages) != 1 {
				t.Errorf("got = %s, %d, %v, want refused, 413", r.Outcome, r.Status, r.Err)
			}
		})
	}
}

func TestWhatIsAcknowledgedIsKnown(t *testing.T) {
	if _, known := unacknowledged(&net.UnixConn{}); known {
		t.Error("a unix socket's is")
	}
	read := make(chan struct{})
	url := listen(t, func(conn net.Conn) {
		receive(bufio.NewReader(conn))
		acknowledge(conn)
		<-read
	})
	defer close(read)
	socket, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if n, known := unacknowledged(socket); n != 0 || known != certain {
		t.Errorf("got = %d, %v, want nothing", n, known)
	}
}
