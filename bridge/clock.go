package bridge

import (
	"math/bits"
	"sync"
	"time"
)

// clock tells connections when the time has come for what they do next. They have one timer together: one each would be a quarter of what an idle connection takes in memory,
// and 10,000 of them wake as many goroutines.
type clock struct {
	tell  func(*conn)
	began time.Time // times are counted from it, so that they don't jump when the machine's clock is set

	mu    sync.Mutex // guards the following, and the place of each connection
	dates []date     // a heap: each before the two at twice its place and the next
	timer *time.Timer
	due   time.Duration // of the timer; 0: it is not set
}

// date is when a connection is to be told.
type date struct {
	at   time.Duration
	conn *conn
}

func newClock() *clock { return &clock{tell: (*conn).tick, began: time.Now(), dates: make([]date, 1)} }

// maxGrain is half a second, about: a power of two, in nanoseconds.
const maxGrain = 1 << 29

// grain returns how much later a connection may be told than after the given time, at most: then many are told at once, and the machine wakes a few times in a second
// for the pings of ten thousand, and not for each. Grains are powers of two, so that all times of a large one are times of a smaller one as well.
func grain(in time.Duration) time.Duration {
	if in < 32 {
		return 0
	}
	return min(time.Duration(1)<<(bits.Len64(uint64(in/32))-1), maxGrain)
}

// set changes when the connection is told to the given time from now on, or a little later.
func (k *clock) set(c *conn, in time.Duration) {
	at := time.Since(k.began) + max(in, 0)
	if g := grain(in); g > 0 {
		at = (at + g - 1) / g * g
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.place == 0 {
		k.dates = append(k.dates, date{})
		c.place = int32(len(k.dates) - 1)
	}
	k.put(int(c.place), date{at, c})
	k.wind()
}

// remove lets the connection be told nothing more.
func (k *clock) remove(c *conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.place > 0 {
		k.take(int(c.place))
	}
}

// take takes the date at that place out of the heap. The lock is held.
func (k *clock) take(place int) {
	k.dates[place].conn.place = 0
	last := len(k.dates) - 1
	d := k.dates[last]
	k.dates[last] = date{}
	k.dates = k.dates[:last]
	if place < last {
		k.put(place, d)
	}
	if last == 1 {
		k.dates = make([]date, 1) // what ten thousand connections took is not kept for none
	}
}

// put puts a date into the heap at that place, or where it belongs from there. The lock is held.
func (k *clock) put(place int, d date) {
	for ; place > 1 && d.at < k.dates[place/2].at; place /= 2 {
		k.lay(place, k.dates[place/2])
	}
	for {
		next := 2 * place
		if next+1 < len(k.dates) && k.dates[next+1].at < k.dates[next].at {
			next++
		}
		if next >= len(k.dates) || d.at <= k.dates[next].at {
			break
		}
		k.lay(place, k.dates[next])
		place = next
	}
	k.lay(place, d)
}

func (k *clock) lay(place int, d date) {
	k.dates[place] = d
	d.conn.place = int32(place)
}

// wind sets the timer to the first date, if it is set to none as early. The lock is held.
func (k *clock) wind() {
	if len(k.dates) == 1 || k.due != 0 && k.due <= k.dates[1].at {
		return
	}
	k.due = max(k.dates[1].at, 1)
	if in := k.due - time.Since(k.began); k.timer == nil {
		k.timer = time.AfterFunc(in, k.strike)
	} else {
		k.timer.Reset(in)
	}
}

// strike tells the connections whose time has come.
func (k *clock) strike() {
	k.mu.Lock()
	k.due = 0
	var told []*conn
	for now := time.Since(k.began); len(k.dates) > 1 && k.dates[1].at <= now; {
		told = append(told, k.dates[1].conn)
		k.take(1)
	}
	k.wind()
	k.mu.Unlock()
	for _, c := range told {
		k.tell(c)
	}
}

// stop ends it. No connection is left.
func (k *clock) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
}
