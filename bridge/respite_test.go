package bridge

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestHandshakesThatComeTogetherWaitAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r respite
		stop, cancel := context.WithCancel(t.Context())
		first := r.begin(stop, 64*time.Second)
		time.Sleep(time.Second)
		if r.begin(stop, 64*time.Second) != first {
			t.Error("one that comes within a second has a context of its own")
		}
		time.Sleep(time.Second)
		second := r.begin(stop, 64*time.Second)
		time.Sleep(62 * time.Second)
		synctest.Wait()
		if got, want := context.Cause(first), "no answer within the handshake's 1m4s"; got == nil || got.Error() != want {
			t.Errorf("the first ends with %v, want %q", got, want)
		}
		if second.Err() != nil {
			t.Errorf("the second has ended with the first: %v", context.Cause(second))
		}
		cancel()
		if second.Err() == nil {
			t.Error("the second goes on behind the end of all")
		}
	})
}
