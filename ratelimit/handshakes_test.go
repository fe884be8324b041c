package ratelimit

import (
	"encoding/binary"
	"math"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stranger returns one of 4 billion addresses.
func stranger(n int) netip.Prefix {
	var address [16]byte
	address[0] = 0x20
	binary.BigEndian.PutUint32(address[4:], uint32(n))
	return netip.PrefixFrom(netip.AddrFrom16(address), 64)
}

func TestEachAddressHasItsOwnRateOfHandshakes(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	alice, bob := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
	h := NewHandshakes(Config{Handshakes: 0.5, HandshakesBurst: 2})
	steps := []struct {
		after      time.Duration
		address    netip.Prefix
		ok         bool
		retryAfter time.Duration
	}{
		{0, alice, true, 0},
		{0, alice, true, 0},
		{0, alice, false, 2 * time.Second},
		{0, bob, true, 0},
		{500 * time.Millisecond, alice, false, 1500 * time.Millisecond},
		{500 * time.Millisecond, alice, false, time.Second},
		{time.Second, alice, true, 0},
		{0, alice, false, 2 * time.Second},
		{0, bob, true, 0},
		{0, bob, true, 0},
		{0, bob, false, 2 * time.Second},
		{time.Hour, alice, true, 0},
		{0, alice, true, 0},
		{0, alice, false, 2 * time.Second}, // an hour doesn't fill the bucket beyond its burst
	}
	for i, step := range steps {
		now = now.Add(step.after)
		ok, retryAfter := h.Allow(now, step.address)
		if ok != step.ok || retryAfter != step.retryAfter {
			t.Errorf("step %d: got = %v, %v, want %v, %v", i, ok, retryAfter, step.ok, step.retryAfter)
		}
	}
}

func TestWhoComesBackWhenToldIsLetIn(t *testing.T) {
	for _, perSecond := range []float64{0.001, 0.1, 0.3, 1, 7, 1000, 1e6} {
		now := time.Unix(1_000_000_000, 0)
		h := NewHandshakes(Config{Handshakes: perSecond, HandshakesBurst: 1})
		h.Allow(now, stranger(0))
		for range 100 {
			ok, retryAfter := h.Allow(now, stranger(0))
			if ok || retryAfter <= 0 {
				t.Fatalf("at %v a second: got = %v, %v, want a refusal", perSecond, ok, retryAfter)
			}
			now = now.Add(retryAfter)
			if ok, again := h.Allow(now, stranger(0)); !ok {
				t.Fatalf("at %v a second: refused %v after it was told to come back, for another %v", perSecond, retryAfter, again)
			}
		}
	}
}

func TestABucketIsForgottenOnlyWhenItIsFull(t *testing.T) {
	// Strangers come all the time and make the generations turn. A bucket needs 8s to fill: at whatever moment an address
	// empties its own, 7s later it has three handshakes, as if nothing was ever forgotten.
	for emptied := range 40 {
		now := time.Unix(1_000_000_000, 0)
		h := NewHandshakes(Config{Handshakes: 0.5, HandshakesBurst: 4})
		take := func() (passed int) {
			for range 10 {
				if ok, _ := h.Allow(now, stranger(0)); ok {
					passed++
				}
			}
			return passed
		}
		for tick := range emptied + 14 {
			if h.Allow(now, stranger(1+tick)); tick == emptied {
				take()
			}
			now = now.Add(500 * time.Millisecond)
		}
		if got := take(); got != 3 {
			t.Errorf("emptied after %d ticks: %d handshakes passed, want 3", emptied, got)
		}
	}
}

func TestOldBucketsAreForgotten(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	h := NewHandshakes(Config{Handshakes: 0.5, HandshakesBurst: 4})
	most := 0
	for n := range 10_000 {
		h.Allow(now, stranger(n))
		most = max(most, len(h.young)+len(h.old))
		now = now.Add(time.Second)
	}
	// One address a second, and two generations of the 8s that a bucket needs to fill.
	if want := 18; most != want {
		t.Errorf("at most %d buckets were kept, want %d", most, want)
	}
}

func TestABucketSurvivesAsManyStrangersAsAGenerationHolds(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	h := NewHandshakes(Config{Handshakes: 0.001, HandshakesBurst: 1})
	h.Allow(now, stranger(0))
	for n := 1; n < 4*generationSize; n++ {
		h.Allow(now, stranger(n))
		if n%(generationSize-1) != 0 {
			continue
		}
		if ok, _ := h.Allow(now, stranger(0)); ok {
			t.Fatalf("after %d strangers the address has another handshake", n)
		}
	}
}

func TestStrangersCannotMakeHandshakesTakeMoreMemory(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	h := NewHandshakes(Config{Handshakes: 0.001, HandshakesBurst: 1})
	before := heap()
	most := 0
	for n := range 3 * generationSize {
		h.Allow(now, stranger(n))
		most = max(most, len(h.young)+len(h.old))
	}
	if want := 2 * generationSize; most != want {
		t.Errorf("at most %d buckets were kept, want %d", most, want)
	}
	if used := heap() - before; used > 32<<20 {
		t.Errorf("%d bytes are used, want 32 MiB at most", used)
	}
	runtime.KeepAlive(h)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestHandshakesAtOnceShareOneBurst(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	h := NewHandshakes(Config{Handshakes: 1, HandshakesBurst: 100})
	var passed atomic.Int64
	var wait sync.WaitGroup
	for n := range 16 {
		wait.Go(func() {
			for i := range 50 {
				if ok, _ := h.Allow(now, stranger(0)); ok {
					passed.Add(1)
				}
				h.Allow(now, stranger(1+n*50+i))
			}
		})
	}
	wait.Wait()
	if got := passed.Load(); got != 100 {
		t.Errorf("%d handshakes passed, want 100", got)
	}
}

func TestHandshakesWithoutABurstMayComeAtTwiceTheRate(t *testing.T) {
	rows := []struct {
		perSecond float64
		want      int
	}{{8, 16}, {0.7, 2}, {0.001, 1}}
	for _, row := range rows {
		h := NewHandshakes(Config{Handshakes: row.perSecond})
		got := 0
		for ok := true; ok && got < 100; got++ {
			ok, _ = h.Allow(time.Unix(1_000_000_000, 0), stranger(0))
		}
		if got--; got != row.want {
			t.Errorf("at %v a second %d handshakes may come at once, want %d", row.perSecond, got, row.want)
		}
	}
}

func TestAnAddressThatIsNotKnownIsNotLimited(t *testing.T) {
	h := NewHandshakes(Config{Handshakes: 1, HandshakesBurst: 1})
	for range 10 {
		if ok, retryAfter := h.Allow(time.Unix(1_000_000_000, 0), netip.Prefix{}); !ok || retryAfter != 0 {
			t.Fatalf("got = %v, %v, want true, 0s", ok, retryAfter)
		}
	}
}

func TestARateOfHandshakesThatIsOffLimitsNothing(t *testing.T) {
	h := NewHandshakes(Config{HandshakesBurst: 1})
	if h != nil {
		t.Fatalf("handshakes = %v, want nil", h)
	}
	for range 10 {
		if ok, retryAfter := h.Allow(time.Now(), stranger(0)); !ok || retryAfter != 0 {
			t.Fatalf("got = %v, %v, want true, 0s", ok, retryAfter)
		}
	}
}

func TestAHandshakeInAThousandYearsIsARateToo(t *testing.T) {
	h := NewHandshakes(Config{Handshakes: 1e-12, HandshakesBurst: 1})
	now := time.Unix(1_000_000_000, 0)
	h.Allow(now, stranger(0))
	if ok, retryAfter := h.Allow(now, stranger(0)); ok || retryAfter != math.MaxInt64 {
		t.Errorf("got = %v, %v, want false, %v", ok, retryAfter, time.Duration(math.MaxInt64))
	}
}
