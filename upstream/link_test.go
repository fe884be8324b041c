package upstream

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
)

// A request waits until the reader has looked at everything that came: what is left is no answer to it.
func TestALinkIsReadyOnceItsReaderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		l := newLink(here)
		read := func(n int) { io.ReadFull(l, make([]byte, n)) }
		ready := make(chan bool, 1)
		wait := func() {
			l.ready()
			ready <- true
		}
		isReady := func(want bool) {
			t.Helper()
			synctest.Wait()
			if got := len(ready) == 1; got != want {
				t.Errorf("ready = %v, want %v", got, want)
			}
			for len(ready) > 0 {
				<-ready
			}
		}
		go wait()
		isReady(false)
		go read(1)
		isReady(true)

		there.Write([]byte("x")) // the reader has something to look at
		synctest.Wait()
		go wait()
		isReady(false)
		go read(1)
		isReady(true)

		there.Write([]byte("x"))
		synctest.Wait()
		go wait()
		isReady(false)
		l.Close() // it has found something that nobody asked for
		isReady(true)
	})
}

func TestALinkKnowsWhatWentOut(t *testing.T) {
	here, there := net.Pipe()
	l := newLink(here)
	go io.ReadFull(there, make([]byte, 5))
	if !l.silent() {
		t.Error("something was sent before anything was written")
	}
	if _, err := l.Write([]byte("hello")); err != nil || l.silent() {
		t.Errorf("silent = %v, %v, want false", l.silent(), err)
	}
	there.Close()
	if _, err := l.Write([]byte("hello")); err == nil || l.silent() {
		t.Errorf("after a write that failed: silent = %v, %v, want false", l.silent(), err)
	}
	if l.broken() {
		t.Error("broken before it was read")
	}
	if _, err := l.Read(make([]byte, 1)); err != io.EOF || !l.broken() {
		t.Errorf("broken = %v, %v, want true", l.broken(), err)
	}
	l.Close()
	l.ready()
	if _, err := l.Write([]byte("hello")); err == nil || !l.silent() {
		t.Errorf("a write of which nothing went out: silent = %v, %v, want true", l.silent(), err)
	}
}
