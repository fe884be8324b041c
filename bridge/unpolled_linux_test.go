package bridge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
)

// meet returns the two ends of a connection to a listener.
func meet(t *testing.T, l net.Listener) (theirs, ours net.Conn) {
	t.Helper()
	theirs, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(theirs, "hello") // without it a connection of TCP is accepted later
	if ours, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		theirs.Close()
		ours.Close()
	})
	return theirs, ours
}

func unpolledListen(t *testing.T, network, address string) (plain, unpolled net.Listener) {
	t.Helper()
	plain, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	unpolled = Unpolled(plain)
	if unpolled == plain {
		t.Fatalf("a listener of %s is accepted from by Go's poller", network)
	}
	t.Cleanup(func() { unpolled.Close() })
	return plain, unpolled
}

func rawOf(t *testing.T, c net.Conn) syscall.RawConn {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What is accepted past package net is as it would be with it: the client's address, and the options of the socket.
func TestAnUnpolledConnectionIsAsPackageNetMakesIt(t *testing.T) {
	options := map[string][2]int{
		"TCP_NODELAY": {unix.IPPROTO_TCP, unix.TCP_NODELAY}, "SO_KEEPALIVE": {unix.SOL_SOCKET, unix.SO_KEEPALIVE}, "TCP_KEEPIDLE": {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		"TCP_KEEPINTVL": {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, "TCP_KEEPCNT": {unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
	}
	for _, test := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", ":0"}, {"unix", filepath.Join(t.TempDir(), "s")},
	} {
		t.Run(test.network+" "+test.address, func(t *testing.T) {
			// The options come from the listener: one that they are not set on shows what package net does.
			other := test.address
			if test.network == "unix" {
				other += "2"
			}
			l, err := net.Listen(test.network, other)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_, want := meet(t, l)
			_, unpolled := unpolledListen(t, test.network, test.address)
			theirs, ours := meet(t, unpolled)
			if test.network == "unix" {
				if got := ours.RemoteAddr().String(); got != want.RemoteAddr().String() {
					t.Errorf("the client's address is %q, want %q", got, want.RemoteAddr())
				}
			} else if got := ours.RemoteAddr().String(); got != theirs.LocalAddr().String() {
				t.Errorf("the client's address is %q, want %q", got, theirs.LocalAddr())
			}
			if got := ours.LocalAddr().Network(); got != want.LocalAddr().Network() {
				t.Errorf("the network is %q, want %q", got, want.LocalAddr().Network())
			}
			for name, of := range options {
				value := func(c net.Conn) (value int, ok bool) {
					rawOf(t, c).Control(func(fd uintptr) { value, ok = option(int(fd), of[0], of[1]) })
					return value, ok
				}
				got, has := value(ours)
				if want, there := value(want); got != want || has != there {
					t.Errorf("%s is %d (%t), want %d (%t)", name, got, has, want, there)
				}
			}
		})
	}
}

// It can be read and written without Go's poller as long as nobody has to wait, and as any other when somebody does.
func TestAnUnpolledConnectionIsPolledWhenSomebodyWaits(t *testing.T) {
	_, l := unpolledListen(t, "tcp", "127.0.0.1:0")
	theirs, ours := meet(t, l)
	u := ours.(*unpolled)
	var buffer [16]byte
	n := 0
	rawOf(t, ours).Control(func(fd uintptr) { n, _, _ = receiveNoWait(int(fd), buffer[:]) })
	rawOf(t, ours).Write(func(fd uintptr) bool { return sendNoWait(int(fd), buffer[:n]) == n })
	if _, err := io.ReadFull(theirs, buffer[8:8+n]); err != nil || string(buffer[8:8+n]) != "hello" {
		t.Fatalf("%q, %v came back, want hello", buffer[8:8+n], err)
	}
	if u.polled.Load() != nil {
		t.Error("Go's poller knows of it, though nobody has waited")
	}

	ours.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := ours.Read(buffer[:])
	if failure, ok := errors.AsType[*net.OpError](err); !ok || !failure.Timeout() || failure.Op != "read" {
		t.Errorf("a read that takes too long fails with %#v, want a timeout of package net", err)
	}
	if fd := u.surrender(); fd >= 0 {
		t.Errorf("descriptor %d is given away, which Go's poller has", fd)
	}
	ours.SetDeadline(time.Time{})
	many := bytes.Repeat([]byte{'x'}, 8<<20) // more than the buffers take
	written := make(chan error, 1)
	go func() {
		rest := many
		written <- rawOf(t, ours).Write(func(fd uintptr) bool {
			rest = rest[sendNoWait(int(fd), rest):]
			return len(rest) == 0
		})
	}()
	if _, err := io.ReadFull(theirs, make([]byte, len(many))); err != nil {
		t.Error(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := ours.Read(buffer[:])
		read <- err
	}()
	if err := ours.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := theirs.Read(buffer[:]); err != io.EOF {
		t.Errorf("%d bytes, %v behind our end, want EOF", n, err)
	}
	ours.Close()
	if err := <-read; err == nil {
		t.Error("closing does not end a read")
	}
}

// What is closed has no descriptor any more, which may be somebody else's by then.
func TestAClosedUnpolledConnectionUsesNoDescriptor(t *testing.T) {
	_, l := unpolledListen(t, "tcp", "127.0.0.1:0")
	for what, lose := range map[string]func(*unpolled) error{
		"closed": (*unpolled).Close,
		"given away": func(u *unpolled) error {
			fd := u.surrender()
			t.Cleanup(func() { unix.Close(fd) })
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			_, ours := meet(t, l)
			if err := lose(ours.(*unpolled)); err != nil {
				t.Fatal(err)
			}
			raw := rawOf(t, ours)
			used := false
			use := func(uintptr) bool { used = true; return true }
			for name, err := range map[string]error{
				"Read":    func() error { _, err := ours.Read(make([]byte, 1)); return err }(),
				"Write":   func() error { _, err := ours.Write([]byte("x")); return err }(),
				"Close":   ours.Close(),
				"Control": raw.Control(func(uintptr) { used = true }), "raw Read": raw.Read(use), "raw Write": raw.Write(use),
				"SetDeadline": ours.SetDeadline(time.Now()),
			} {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s returns %v, want that it is closed", name, err)
				}
			}
			if used {
				t.Error("a descriptor has been used")
			}
		})
	}
}

// Clients are closed from elsewhere, in whatever moment: also as their reader begins to wait.
func TestClosingAnUnpolledConnectionEndsWhoBeginsToWait(t *testing.T) {
	_, l := unpolledListen(t, "tcp", "127.0.0.1:0")
	for range 300 {
		theirs, ours := meet(t, l)
		over := make(chan struct{})
		go func() {
			defer close(over)
			for err := error(nil); err == nil; {
				_, err = ours.Read(make([]byte, 8))
			}
		}()
		ours.Close()
		theirs.SetReadDeadline(time.Now().Add(clientsPatience))
		if _, err := theirs.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("it is closed, and its client is not told")
		}
		<-over
	}
}

func TestClosingAnUnpolledListenerEndsAccept(t *testing.T) {
	plain, l := unpolledListen(t, "tcp", "127.0.0.1:0")
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returns %v, want that it is closed", err)
	}
	if _, err := plain.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept of what it was made of returns %v, want that it is closed", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

// A socket that can't be watched with the parked ones is read as if there were none.
func TestAConnectionThatCanNotBeParkedIsServed(t *testing.T) {
	r := newRelay(t, false, func(w http.ResponseWriter, req *http.Request) { io.Copy(w, req.Body) }, nil)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p := &r.serving.Load().parking
	p.mu.Lock()
	p.epoll = out // which watches nothing
	p.raw, err = out.SyscallConn()
	p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	c := r.dial("/")
	for _, want := range []string{"hello", "again"} {
		if err := c.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, c); got != want {
			t.Errorf("got = %q, want %q", got, want)
		}
	}
	if _, err := out.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the watch that fails has not been tried: %v", err)
	}
}
