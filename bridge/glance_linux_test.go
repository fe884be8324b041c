package bridge

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The end of the stream may come in the packet that the last message comes in, and nothing tells of it a second time.
func TestAClientThatLeavesWithItsMessageIsNoticedDuringThePost(t *testing.T) {
	held := make(chan struct{})
	r := newRelay(t, false, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if req.Header.Get("ce-type") != "wsbridge.message" {
			return
		}
		if string(body) == "hold" {
			<-held
		}
		w.Write(body)
	}, nil)
	defer close(held)
	c := r.dial("/")
	if err := c.WriteMessage(1, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, p, err := c.ReadMessage(); err != nil || string(p) != "hello" {
		t.Fatalf("got %q, %v", p, err)
	}
	raw, err := c.NetConn().(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	frame := []byte{finBit | opText, 0x80 | 4, 0, 0, 0, 0, 'h', 'o', 'l', 'd'}
	raw.Control(func(fd uintptr) {
		if err := unix.Send(int(fd), frame, unix.MSG_MORE); err != nil { // it waits for more, which is the end
			t.Error(err)
		}
		if err := unix.Shutdown(int(fd), unix.SHUT_WR); err != nil {
			t.Error(err)
		}
	})
	b := r.serving.Load()
	for end := time.Now().Add(patience / 4); len(b.registry.members(target{kind: toAll})) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is still there while its message is posted")
		}
	}
}
