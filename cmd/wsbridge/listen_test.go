package main

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// socketPath returns a path for a unix socket; those of t.TempDir are often too long for one.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ws")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "sock")
}

// mustListen returns a listener that closes with the test.
func mustListen(t *testing.T, address string, mode fs.FileMode) net.Listener {
	t.Helper()
	l, err := listen(t.Context(), address, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// wantGreeting fails unless a client of the listener's address reaches the listener.
func wantGreeting(t *testing.T, l net.Listener) {
	t.Helper()
	go func() {
		if conn, err := l.Accept(); err == nil {
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	conn, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "hello" {
		t.Errorf("read %q, %v, want hello", got, err)
	}
}

func TestAListenerIsReachedOnTCPAndOnAUnixSocket(t *testing.T) {
	t.Parallel()
	wantGreeting(t, mustListen(t, "127.0.0.1:0", 0o600))
	wantGreeting(t, mustListen(t, "unix:"+socketPath(t), 0o600))
}

func TestAUnixSocketHasItsModeAndIsRemovedOnClose(t *testing.T) {
	t.Parallel()
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666, 0o777} {
		path := socketPath(t)
		l := mustListen(t, "unix:"+path, mode)
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode|fs.ModeSocket {
			t.Errorf("mode = %v, want %v", info.Mode(), mode|fs.ModeSocket)
		}
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Close: Lstat = %v, want %v", err, fs.ErrNotExist)
		}
	}
}

// A loop beside the binding looks at the socket as often as it can, so that over many rounds it meets every mode it ever had.
func TestAUnixSocketIsNeverMoreOpenThanItsMode(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	var seen atomic.Uint32
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if info, err := os.Lstat(path); err == nil {
					seen.Or(uint32(info.Mode().Perm()))
				}
			}
		}
	})
	for round := 0; round < 300 || seen.Load() == 0; round++ {
		l, err := listen(t.Context(), "unix:"+path, 0o600)
		if err != nil {
			t.Error(err)
			break
		}
		l.Close()
	}
	close(stop)
	watcher.Wait()
	if got := fs.FileMode(seen.Load()); got != 0o600 {
		t.Errorf("modes seen = %v, want %v", got, fs.FileMode(0o600))
	}
}

func TestASocketThatADeadProcessLeftIsReplaced(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	left := mustListen(t, "unix:"+path, 0o600).(*net.UnixListener)
	left.SetUnlinkOnClose(false)
	left.Close()
	wantGreeting(t, mustListen(t, "unix:"+path, 0o600))
}

func TestASocketInUseIsLeftAlone(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	first := mustListen(t, "unix:"+path, 0o600)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		if conn, err := first.Accept(); err == nil { // the second one's question whether anybody is there
			conn.Close()
		}
	}()
	_, err := listen(t.Context(), "unix:"+path, 0o600)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
		t.Errorf("listen = %v, want %v with the path", err, syscall.EADDRINUSE)
	}
	<-accepted
	wantGreeting(t, first)

	tcp := mustListen(t, "127.0.0.1:0", 0)
	if _, err := listen(t.Context(), tcp.Addr().String(), 0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen on a TCP port in use = %v, want %v", err, syscall.EADDRINUSE)
	}
}

func TestASocketOfAnotherKindIsLeftAlone(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	if l, err := listen(t.Context(), "unix:"+path, 0o600); err == nil {
		l.Close()
		t.Error("listen in place of a datagram socket succeeded, want an error")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the datagram socket is gone: %v", err)
	}
}

func TestWhatIsNotASocketIsNeverReplacedByOne(t *testing.T) {
	t.Parallel()
	file := socketPath(t)
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := socketPath(t)
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	socket, socketLink := socketPath(t), socketPath(t)
	mustListen(t, "unix:"+socket, 0o600)
	if err := os.Symlink(socket, socketLink); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, socketLink, filepath.Dir(file)} {
		if _, err := listen(t.Context(), "unix:"+path, 0o600); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("listen on %s = %v, want an error that says it is not a socket", path, err)
		}
	}
	if content, err := os.ReadFile(file); string(content) != "precious" {
		t.Errorf("content = %q, %v, want precious", content, err)
	}
}

func TestAnAddressThatCannotBeIsAnError(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "8080", "unix:", "unix:/", "unix:sock", "unix:/run/", "unix:/a\x00b", "a b:80", "127.0.0.1:-1", "1.2.3.4.5:80", "-:"} {
		if l, err := listen(t.Context(), address, 0o600); err == nil {
			l.Close()
			t.Errorf("listen(%q) succeeded, want an error", address)
		}
	}
}
