package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gate is a guard in fake time, with what it has told and how often it has asked by something that is no event.
type gate struct {
	*guard
	t      *testing.T
	mu     sync.Mutex
	told   []string
	asked  []time.Time
	answer Reply // to what is no event
}

func inGate(t *testing.T, most int, retry Retry, test func(*gate)) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{t: t, answer: Reply{Outcome: Uncertain, Status: 502, Err: errors.New("502")}}
		g.guard = newGuard(Config{MaxConcurrent: most, Retry: retry, RetryFor: 2 * time.Minute}, func(_ context.Context, h *Handshake) *Reply {
			g.mu.Lock()
			defer g.mu.Unlock()
			if h == nil || h.Path != "/ws" {
				t.Errorf("the probe asks for %v, want what the failed event asked for", h)
			}
			g.asked = append(g.asked, time.Now())
			r := g.answer
			return &r
		}, func() {})
		g.guard.told = func(down bool, why error) {
			if down != (why != nil) {
				t.Errorf("down = %v, why = %v", down, why)
			}
			g.told = append(g.told, map[bool]string{true: "down", false: "up"}[down])
		}
		defer g.close()
		test(g)
	})
}

func of(connection string) *Event {
	e := text("x")
	e.ConnectionID = connection
	return e
}

// times returns how often the guard has asked by something that is no event.
func (g *gate) times() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked)
}

// now returns the turn that the event has at once.
func (g *gate) now(connection string) *Turn {
	g.t.Helper()
	start := time.Now()
	t, none := g.enter(g.t.Context(), of(connection), time.Time{})
	if none != nil || time.Since(start) != 0 {
		g.t.Fatalf("%s has no turn at once: %v after %s", connection, none, time.Since(start))
	}
	return t
}

// later asks for a turn, and returns a channel on which it comes.
func (g *gate) later(e *Event) <-chan *Turn {
	came := make(chan *Turn, 1)
	go func() {
		if t, none := g.enter(g.t.Context(), e, time.Time{}); none == nil {
			came <- t
		}
	}()
	synctest.Wait()
	return came
}

// has returns the turn that has come, or nil.
func has(came <-chan *Turn) *Turn {
	synctest.Wait()
	select {
	case t := <-came:
		return t
	default:
		return nil
	}
}

// The ways a POST may have gone.
var (
	good      = &Reply{Outcome: Accepted, Status: 200}
	refusing  = &Reply{Outcome: Unreachable, Err: errors.New("connection refused")}
	hangingUp = &Reply{Outcome: Uncertain, Err: errors.New("EOF")}
	busy      = &Reply{Outcome: Later, Status: 503, Err: errors.New("503")}
	tooMany   = &Reply{Outcome: Later, Status: 429, Err: errors.New("429")}
	oops      = &Reply{Outcome: Failed, Status: 500, Err: errors.New("500")}
)

// fall takes the backend down.
func (g *gate) fall(r *Reply) {
	for i := range downAfter {
		g.leave(g.now(fmt.Sprint("fall", i)), r)
	}
	if _, _, down := g.state(); !down {
		g.t.Fatal("the backend is not down")
	}
}

func TestTurnsComeInTheOrderTheyWereAskedFor(t *testing.T) {
	inGate(t, 1, RetrySafe, func(g *gate) {
		first := g.now("first")
		var came []<-chan *Turn
		for i := range 10 {
			came = append(came, g.later(of(fmt.Sprint(i))))
		}
		for i := range came {
			for j, other := range came[i:] {
				if has(other) != nil {
					t.Fatalf("%d has its turn, want %d", i+j, i)
				}
			}
			g.leave(first, good)
			if first = has(came[i]); first == nil {
				t.Fatalf("%d has no turn", i)
			}
		}
	})
}

func TestWhatTakesABackendDown(t *testing.T) {
	rows := []struct {
		name        string
		replies     []*Reply
		connections string // of the replies, a letter each
		want        bool
	}{
		{"three POSTs that nobody takes", []*Reply{refusing, refusing, refusing}, "aaa", true},
		{"two", []*Reply{refusing, refusing}, "ab", false},
		{"failures of several connections", []*Reply{hangingUp, hangingUp, hangingUp}, "aba", true},
		{"failures of one connection: it may be its message", []*Reply{hangingUp, hangingUp, hangingUp, hangingUp}, "aaaa", false},
		{"and then another's", []*Reply{hangingUp, hangingUp, hangingUp, hangingUp}, "aaab", true},
		{"503 for several connections", []*Reply{busy, busy, busy}, "abc", true},
		{"429 is one connection's business", []*Reply{tooMany, tooMany, tooMany, tooMany}, "abcd", false},
		{"an answer between them", []*Reply{hangingUp, hangingUp, good, hangingUp, hangingUp}, "abcab", false},
		{"an error page is an answer", []*Reply{hangingUp, hangingUp, oops, hangingUp, hangingUp}, "abcab", false},
		{"nobody knows", []*Reply{hangingUp, hangingUp, nil}, "abc", false},
	}
	for _, row := range rows {
		inGate(t, 16, RetrySafe, func(g *gate) {
			for i, r := range row.replies {
				g.leave(g.now(row.connections[i:i+1]), r)
			}
			if _, _, down := g.state(); down != row.want {
				t.Errorf("%s: down = %v, want %v", row.name, down, row.want)
			}
			if want := map[bool]int{true: 1}[row.want]; len(g.told) != want {
				t.Errorf("%s: told %q, want %d times", row.name, g.told, want)
			}
		})
	}
}

func TestOneProbeAtATimeWhileTheBackendIsDown(t *testing.T) {
	inGate(t, 16, RetrySafe, func(g *gate) {
		g.fall(refusing)
		var came []<-chan *Turn
		for i := range 20 {
			came = append(came, g.later(of(fmt.Sprint(i))))
		}
		var pauses []time.Duration
		for i := range 8 {
			last := time.Now()
			var probe *Turn
			for probe == nil {
				time.Sleep(time.Millisecond)
				probe = has(came[i])
			}
			pauses = append(pauses, time.Since(last))
			time.Sleep(10 * time.Second) // it hangs, and nobody else is let through
			for _, other := range came[i+1:] {
				if has(other) != nil {
					t.Fatal("a second probe beside the first")
				}
			}
			g.leave(probe, refusing)
		}
		for i, pause := range pauses {
			if longest := min(firstProbe<<i, lastProbe); pause < longest/2 || pause > longest+time.Millisecond {
				t.Errorf("the pause before probe %d = %s, want %s to %s", i, pause, longest/2, longest)
			}
		}
		if !slices.Equal(g.told, []string{"down"}) || g.times() != 0 {
			t.Errorf("told %q, asked %d times, want one down and the events as probes: what nobody takes does no harm", g.told, g.times())
		}
	})
}

// Where the backend fails what it may have taken, a probe that is a message would cost its client the connection.
func TestTheProbeIsNoMessageWhereThatCouldDoHarm(t *testing.T) {
	inGate(t, 16, RetrySafe, func(g *gate) {
		g.fall(hangingUp)
		came := g.later(of("waiting"))
		for g.times() < boldProbe-1 {
			time.Sleep(time.Millisecond)
			if has(came) != nil {
				t.Fatalf("probe %d is the message", g.times())
			}
		}
		// But now and then it is: the application may know no OPTIONS.
		var bold *Turn
		for bold == nil {
			time.Sleep(time.Millisecond)
			bold = has(came)
		}
		if g.times() != boldProbe-1 {
			t.Errorf("asked %d times before, want %d", g.times(), boldProbe-1)
		}
		g.leave(bold, hangingUp)
		goodbye := of("gone")
		goodbye.Type = Disconnect
		first, second := g.later(of("waiting")), g.later(goodbye)
		var probe *Turn
		for probe == nil {
			time.Sleep(time.Millisecond)
			probe = has(second)
		}
		if has(first) != nil || g.times() != boldProbe-1 {
			t.Error("want the goodbye as a probe: it is posted again anyway")
		}
		g.leave(probe, good)
		if has(first) == nil || !slices.Equal(g.told, []string{"down", "up"}) {
			t.Errorf("told %q, want up and a turn for who waits", g.told)
		}
	})
	inGate(t, 16, RetryAlways, func(g *gate) {
		g.fall(hangingUp)
		came := g.later(of("waiting"))
		time.Sleep(firstProbe)
		if has(came) == nil || g.times() != 0 {
			t.Error("a message that is sent again anyway is no probe")
		}
	})
}

func TestABackendThatNobodyAsksForAnythingIsFoundToBeBack(t *testing.T) {
	inGate(t, 16, RetrySafe, func(g *gate) {
		g.fall(refusing)
		time.Sleep(time.Minute)
		if _, _, down := g.state(); !down || g.times() < 30 || g.times() > 70 {
			t.Errorf("down = %v, asked %d times in a minute, want one in %s to %s", down, g.times(), lastProbe/2, lastProbe)
		}
		g.mu.Lock()
		g.answer = Reply{Outcome: Misconfigured, Status: 405} // whatever: it answers
		g.mu.Unlock()
		time.Sleep(lastProbe)
		if _, _, down := g.state(); down || !slices.Equal(g.told, []string{"down", "up"}) {
			t.Errorf("down = %v, told %q, want it back", down, g.told)
		}
	})
}

func TestABackendThatSaysLaterIsNotAskedBefore(t *testing.T) {
	inGate(t, 16, RetrySafe, func(g *gate) {
		g.fall(&Reply{Outcome: Later, Status: 503, After: 17 * time.Second, Err: errors.New("503")})
		came := g.later(of("waiting"))
		time.Sleep(17*time.Second - 1)
		if has(came) != nil {
			t.Error("asked before the time")
		}
		time.Sleep(1)
		if has(came) == nil {
			t.Error("not asked when the time has come")
		}
	})
}

func TestTheTurnsComeBackAFewAtATime(t *testing.T) {
	const most = 8
	inGate(t, most, RetrySafe, func(g *gate) {
		g.fall(refusing)
		var waiting []<-chan *Turn
		for i := range 200 {
			waiting = append(waiting, g.later(of(fmt.Sprint(i))))
		}
		time.Sleep(firstProbe)
		var under []*Turn
		var record []int
		for answers := 0; answers < 100; answers++ {
			for _, came := range waiting {
				if t := has(came); t != nil {
					under = append(under, t)
				}
			}
			record = append(record, len(under))
			g.leave(under[0], good)
			under = under[1:]
		}
		// The probe, whose answer lets one through, and then one more for each two answers.
		for answers, got := range record {
			want := min(1+max(answers-1, 0)/rampStep, most)
			if got != want {
				t.Fatalf("POSTs at once behind %d answers = %d, want %d; all: %v", answers, got, want, record)
			}
		}
	})
}

func TestARampThatFailsBeginsAnew(t *testing.T) {
	inGate(t, 8, RetrySafe, func(g *gate) {
		g.fall(refusing)
		came := g.later(of("a"))
		time.Sleep(firstProbe)
		g.leave(has(came), good)
		g.leave(g.now("b"), refusing)
		if _, _, down := g.state(); !down {
			t.Error("not down, though nobody takes a POST again")
		}
		// What may be one message's fault is not enough, here as elsewhere.
		came = g.later(of("a"))
		time.Sleep(firstProbe)
		g.leave(has(came), good)
		for range 5 {
			g.leave(g.now("poison"), hangingUp)
			time.Sleep(suspicion)
			synctest.Wait()
		}
		if _, _, down := g.state(); down {
			t.Error("one connection's message has taken the backend down")
		}
	})
}

// The last words of a backend that stops, or of one that was replaced, are no news of how it is now.
func TestWhatBeganBeforeTheBackendWentDownSaysNothing(t *testing.T) {
	inGate(t, 16, RetrySafe, func(g *gate) {
		first, second, third := g.now("first"), g.now("second"), g.now("third")
		g.fall(refusing)
		g.leave(first, good)
		if _, _, down := g.state(); !down {
			t.Error("an answer to an old POST has brought the backend back")
		}
		came := g.later(of("a"))
		time.Sleep(firstProbe)
		g.leave(has(came), good)
		g.leave(second, hangingUp)
		g.leave(third, hangingUp)
		if _, _, down := g.state(); down || !slices.Equal(g.told, []string{"down", "up"}) {
			t.Errorf("told %q: the end of old POSTs has taken the new backend down", g.told)
		}
	})
}

// When a backend dies, its POSTs break off one after the other. Nobody is sent to its listener in the middle of that.
func TestTheTurnOfAPostThatBrokeOffIsKeptBack(t *testing.T) {
	inGate(t, 3, RetrySafe, func(g *gate) {
		under := []*Turn{g.now("a"), g.now("b"), g.now("c")}
		next := g.later(of("d"))
		for _, turn := range under {
			g.leave(turn, hangingUp)
			if has(next) != nil {
				t.Fatal("the next has its turn at a backend that is dying")
			}
		}
		if _, _, down := g.state(); !down {
			t.Error("not down")
		}
	})
	inGate(t, 1, RetrySafe, func(g *gate) {
		g.leave(g.now("a"), hangingUp)
		next := g.later(of("b"))
		time.Sleep(suspicion)
		if has(next) == nil {
			t.Error("the turn does not come back")
		}
	})
}

// POSTs that hang since before are not counted against the ramp, but they are POSTs.
func TestPostsThatHangDoNotHoldUpTheRamp(t *testing.T) {
	inGate(t, 4, RetrySafe, func(g *gate) {
		hanging := []*Turn{g.now("h1"), g.now("h2")}
		g.fall(refusing)
		a, b, c := g.later(of("a")), g.later(of("b")), g.later(of("c"))
		time.Sleep(firstProbe)
		g.leave(has(a), good)
		turn := has(b)
		if turn == nil {
			t.Fatal("nobody has a turn behind the answer to the probe")
		}
		g.leave(turn, good)
		if turn = has(c); turn == nil {
			t.Fatal("c has no turn")
		}
		d, e := g.later(of("d")), g.later(of("e"))
		g.leave(turn, good) // two POSTs at once, from now on
		if has(d) == nil || has(e) == nil {
			t.Error("d and e have no turns")
		}
		f := g.later(of("f"))
		if busy, _, _ := g.state(); busy != 4 || has(f) != nil {
			t.Errorf("%d POSTs at once, want 4", busy)
		}
		for _, h := range hanging {
			g.leave(h, hangingUp)
		}
		time.Sleep(suspicion)
		synctest.Wait()
		if busy, waiting, _ := g.state(); busy != 2 || waiting != 1 {
			t.Errorf("%d POSTs at once and %d waiting, want 2 and 1: the ramp has room for two", busy, waiting)
		}
	})
}

func TestWhoWaitsForABackendThatIsDownIsGivenUpInTheEnd(t *testing.T) {
	inGate(t, 1, RetrySafe, func(g *gate) {
		g.fall(busy)
		g.guard.mu.Lock()
		g.probing = true // one that hangs
		g.guard.mu.Unlock()
		start := time.Now()
		_, none := g.enter(g.t.Context(), of("a"), time.Time{})
		if took := time.Since(start); none == nil || none.Outcome != Later || none.Status != 503 || took != 2*time.Minute {
			t.Errorf("got = %v after %s, want later, 503, after 2m", none, took)
		}
		start = time.Now()
		_, none = g.enter(g.t.Context(), of("a"), start.Add(7*time.Second))
		if took := time.Since(start); none == nil || took != 7*time.Second {
			t.Errorf("got = %v after %s, want it given up after 7s", none, took)
		}
		ctx, cancel := context.WithTimeoutCause(g.t.Context(), time.Hour, errors.New("the drain is over"))
		defer cancel()
		goodbye := of("a")
		goodbye.Type = Disconnect
		start = time.Now()
		_, none = g.enter(ctx, goodbye, time.Time{})
		if took := time.Since(start); none == nil || took != time.Hour || !strings.Contains(none.Err.Error(), "the drain is over") || !strings.Contains(none.Err.Error(), "503") {
			t.Errorf("a goodbye: got = %v after %s, want it to wait as long as it may, and to say why", none, took)
		}
	})
	// A backend that has much to do is waited for without a limit of ours.
	inGate(t, 1, RetrySafe, func(g *gate) {
		slow := g.now("slow")
		came := g.later(of("a"))
		time.Sleep(time.Hour)
		g.leave(slow, good)
		if has(came) == nil {
			t.Error("given up, though the backend was just slow")
		}
	})
}

// Whatever becomes of POSTs, and whoever stops waiting: never more than may be, and in the end everybody has had a turn.
func TestNoTurnIsLost(t *testing.T) {
	replies := []*Reply{good, good, good, good, oops, refusing, hangingUp, busy, tooMany, nil}
	for seed := range uint64(200) {
		inGate(t, 3, RetrySafe, func(g *gate) {
			g.answer = Reply{Outcome: Accepted, Status: 200}
			random := rand.New(rand.NewPCG(seed, 0))
			var mu sync.Mutex
			under, high := 0, 0
			var all sync.WaitGroup
			for i := range 30 {
				reply, patience, work := replies[random.IntN(len(replies))], time.Duration(random.IntN(20))*time.Second, time.Duration(random.IntN(3000))*time.Millisecond
				all.Go(func() {
					ctx, cancel := context.WithTimeout(g.t.Context(), patience)
					defer cancel()
					turn, none := g.enter(ctx, of(fmt.Sprint(i%7)), time.Time{})
					if none != nil {
						return
					}
					mu.Lock()
					under++
					high = max(high, under)
					mu.Unlock()
					time.Sleep(work)
					mu.Lock()
					under--
					mu.Unlock()
					g.leave(turn, reply)
				})
			}
			all.Wait()
			time.Sleep(time.Minute) // the last probe, by something that is no event
			busy, waiting, down := g.state()
			if high > 3 || busy != 0 || waiting != 0 || down || g.stale != 0 {
				t.Fatalf("seed %d: at most %d at once, then %d busy (%d stale), %d waiting, down = %v", seed, high, busy, g.stale, waiting, down)
			}
		})
	}
}
