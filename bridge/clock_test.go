package bridge

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whatever is set, set anew and removed: each connection is told at its time or less than a grain behind it, once, and not when it was removed.
func TestTheClockTellsEachConnectionAtItsTime(t *testing.T) {
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			start := time.Now()
			k := newClock() // which counts from now, as the test does
			told := map[*conn][]time.Duration{}
			var mu sync.Mutex
			k.tell = func(c *conn) {
				mu.Lock()
				defer mu.Unlock()
				told[c] = append(told[c], time.Since(start))
			}
			want := map[*conn]time.Duration{}
			conns := make([]*conn, 50)
			for i := range conns {
				conns[i] = &conn{}
			}
			expected := map[*conn][]time.Duration{}
			for range 500 {
				synctest.Wait()
				now := time.Since(start)
				for c, at := range want {
					if at <= now {
						expected[c] = append(expected[c], at)
						delete(want, c)
					}
				}
				switch c := conns[random.IntN(len(conns))]; random.IntN(5) {
				case 0:
					k.remove(c)
					delete(want, c)
				case 1:
					time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
				default:
					in := time.Duration(1+random.IntN(2000)) * time.Millisecond
					k.set(c, in)
					g := grain(in)
					want[c] = (now + in + g - 1) / g * g
				}
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			for c, at := range want {
				expected[c] = append(expected[c], at)
			}
			mu.Lock()
			defer mu.Unlock()
			for i, c := range conns {
				if len(told[c]) != len(expected[c]) {
					t.Fatalf("seed %d: connection %d was told at %v, want %v", seed, i, told[c], expected[c])
				}
				for j, at := range expected[c] {
					if told[c][j] != at {
						t.Fatalf("seed %d: connection %d was told at %v, want %v", seed, i, told[c], expected[c])
					}
				}
				if c.place != 0 {
					t.Errorf("seed %d: connection %d is still to be told", seed, i)
				}
			}
			if len(k.dates) != 1 {
				t.Errorf("seed %d: %d dates are left", seed, len(k.dates)-1)
			}
		})
	}
}
