package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gorilla/websocket"
)

// serving runs the program's assembly on free ports until the test ends.
func serving(t *testing.T, environ ...string) (clients, pushes string) {
	t.Helper()
	return servingUntil(t.Context(), t, environ...)
}

// servingUntil does so until the context ends.
func servingUntil(ctx context.Context, t *testing.T, environ ...string) (clients, pushes string) {
	t.Helper()
	s := mustParse(t, environ...)
	var listeners [2]net.Listener
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = l
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- serve(ctx, s, environ, slog.New(slog.DiscardHandler), listeners[0], listeners[1]) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return listeners[0].Addr().String(), listeners[1].Addr().String()
}

// Where systemd keeps the listener, who comes behind the end waits for the next start; who came just before it must not be worse off.
func TestWhoWasAcceptedBeforeTheEndIsAnswered(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.NotFoundHandler())
	defer backend.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	clients, _ := servingUntil(ctx, t, "WSBRIDGE_BACKEND_URL="+backend.URL+"/events")
	c, err := net.Dial("tcp", clients)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The answer to another one says that the first has been accepted.
	if resp, err := http.Get("http://" + clients + "/ws"); err != nil {
		t.Fatal(err)
	} else {
		resp.Body.Close()
	}
	stop()
	for err = nil; err == nil; {
		var other net.Conn
		if other, err = net.Dial("tcp", clients); err == nil {
			other.Close()
		}
	}
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("who was accepted before the end: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("who was accepted before the end: %s, want 426", resp.Status)
	}
}

// Who announces a body and never sends it gets an answer, and then must not hold a socket for ever: those sockets are in front of all
// gates.
func TestABodyThatNeverComesIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.NotFoundHandler())
	defer backend.Close()
	clients, pushes := serving(t, "WSBRIDGE_BACKEND_URL="+backend.URL+"/events", "WSBRIDGE_BACKEND_EVENTS=message",
		"WSBRIDGE_MAX_CONNECTIONS=4", "WSBRIDGE_HANDSHAKE_TIMEOUT=300ms")
	for _, row := range []struct{ address, path string }{{clients, "/ws"}, {pushes, "/healthz"}, {pushes, "/nowhere"}} {
		var conns []net.Conn
		for range 30 { // more than may wait at once
			c, err := net.Dial("tcp", row.address)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n", row.path)
			conns = append(conns, c)
		}
		for _, c := range conns {
			io.Copy(io.Discard, bufio.NewReader(c)) // returns when the server has closed it
			c.Close()
		}
	}
	c, _, err := websocket.DefaultDialer.Dial("ws://"+clients+"/ws", nil)
	if err != nil {
		t.Fatalf("a client that comes then: %v", err)
	}
	c.Close()
}
