package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

const (
	// garbage is how much may always pile up before it is collected, in bytes.
	garbage = 4 << 20
	// rush is the same while messages make so much garbage that a collection for every few megabytes would cost more processor than those are worth, and be what the slowest of
	// them wait for; rushFrom is how much that is, in bytes a second: of some 4,000 messages.
	rush     = 16 << 20
	rushFrom = 4 << 20
	// garbagePercent is how much may pile up beside the memory of many connections. Go's 100 % would double it.
	garbagePercent = 40
	// crowd and crowdPercent are the same while it is handshakes that make the garbage: what is left at the peak of ten thousand of them is for the system to find, while idle connections
	// need little more than that themselves.
	crowd        = 2 << 20
	crowdPercent = 25
	// handshakeGarbage is what a handshake leaves behind, in bytes, about.
	handshakeGarbage = 4 << 10
)

// arrivals counts the sockets of clients that this process has accepted.
var arrivals atomic.Uint64

// pace is what the collector's pace is set by, as it was at the last collection.
type pace struct {
	at        time.Time
	allocated uint64 // since the process began, in bytes
	arrived   uint64
}

// set sets the collector's pace anew after each collection. It is not called where the operator sets GOGC.
func (p *pace) set() {
	now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(now)
	debug.SetGCPercent(p.percent(time.Now(), now[0].Value.Uint64(), now[1].Value.Uint64(), arrivals.Load()))
	// A cleanup of something that nothing refers to runs after the next collection.
	runtime.AddCleanup(&struct{ _ *int }{}, func(p *pace) { p.set() }, p)
}

// percent returns the percentage of the live heap, in bytes, that may pile up as garbage.
func (p *pace) percent(now time.Time, live, allocated, arrived uint64) int {
	made, handshakes, seconds := float64(allocated-p.allocated), float64(arrived-p.arrived), now.Sub(p.at).Seconds()
	*p = pace{now, allocated, arrived}
	room, percent := garbage, garbagePercent
	switch {
	case handshakes*handshakeGarbage >= made/4:
		room, percent = crowd, crowdPercent
	case made > rushFrom*seconds:
		room = rush
	}
	return max(percent, room*100/int(max(live, 4<<20))) // the runtime takes a smaller heap for 4 MiB
}

const (
	// quietEvery is how often it is looked whether there is memory to give back.
	quietEvery = time.Second
	// quietBytes is how much is allocated in that time by a process that has little to do.
	quietBytes = 256 << 10
	// worthwhile is how much must have been allocated since memory was last given back, in bytes, beside an eighth of what is in use: to give it back is to look through all of that.
	worthwhile = 1 << 20
	// ended is how many goroutines, which leave their stacks behind, are worth it as well: connections that have been parked or have gone.
	ended = 1000
)

// giveBack gives memory back to the system once the process has little to do: what ten thousand handshakes have left behind would else stay as long as nothing happens, for
// the next collection comes with the next garbage. It never returns.
func giveBack() {
	now := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/sched/goroutines:goroutines"}, {Name: "/gc/heap/live:bytes"}}
	var q quiet
	for range time.Tick(quietEvery) {
		metrics.Read(now)
		if q.comes(now[0].Value.Uint64(), now[1].Value.Uint64(), now[2].Value.Uint64()) {
			runtime.GC() // what pools have goes with the second collection
			debug.FreeOSMemory()
		}
	}
}

// quiet finds the moments to give memory back.
type quiet struct {
	last, given uint64 // allocated by then, in bytes
	most        uint64 // goroutines since memory was last given back
}

// comes takes note of how much has been allocated so far and is in use, in bytes, and of how many goroutines there are, and reports whether the time has come.
func (q *quiet) comes(allocated, goroutines, live uint64) bool {
	rests := allocated-q.last < quietBytes
	q.last, q.most = allocated, max(q.most, goroutines)
	if !rests || allocated-q.given < worthwhile+live/8 && q.most-goroutines < ended {
		return false
	}
	q.given, q.most = allocated, goroutines
	return true
}
