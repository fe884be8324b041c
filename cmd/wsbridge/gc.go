package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// garbage is how much may always pile up before it is collected, in bytes. Few connections have little memory, and a collection for
	// every few megabytes of messages costs more processor than those are worth.
	garbage = 16 << 20
	// garbagePercent is how much may pile up beside the memory of many connections. Go's 100 % would double it, and what piles up
	// beside idle ones is left from their handshakes.
	garbagePercent = 40
)

// paceGC sets the collector's pace anew after each collection, from what is in use by then. It is not called where the operator
// sets GOGC.
func paceGC() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(gcPercent(live[0].Value.Uint64()))
	// A cleanup of something that nothing refers to runs after the next collection.
	runtime.AddCleanup(&struct{ _ *int }{}, func(struct{}) { paceGC() }, struct{}{})
}

// gcPercent returns the percentage of the live heap, in bytes, that may pile up as garbage.
func gcPercent(live uint64) int {
	return max(garbagePercent, int(garbage*100/max(live, 4<<20))) // the runtime takes a smaller heap for 4 MiB
}

const (
	// quietEvery is how often it is looked whether there is memory to give back.
	quietEvery = time.Second
	// quietBytes is how much is allocated in that time by a process that has little to do.
	quietBytes = 256 << 10
	// worthwhile is how much must have been allocated since memory was last given back, in bytes.
	worthwhile = 8 << 20
	// ended is how many goroutines, which leave their stacks behind, are worth it as well: connections that have been parked or have gone.
	ended = 1000
)

// giveBack gives memory back to the system once the process has little to do: what ten thousand handshakes have left behind would else stay as long as nothing happens, for
// the next collection comes with the next garbage. It never returns.
func giveBack() {
	now := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	var q quiet
	for range time.Tick(quietEvery) {
		metrics.Read(now)
		if q.comes(now[0].Value.Uint64(), now[1].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}

// quiet finds the moments to give memory back.
type quiet struct {
	last, given uint64 // allocated by then, in bytes
	most        uint64 // goroutines since memory was last given back
}

// comes takes note of how much has been allocated so far, in bytes, and of how many goroutines there are, and reports whether the time has come.
func (q *quiet) comes(allocated, goroutines uint64) bool {
	rests := allocated-q.last < quietBytes
	q.last, q.most = allocated, max(q.most, goroutines)
	if !rests || allocated-q.given < worthwhile && q.most-goroutines < ended {
		return false
	}
	q.given, q.most = allocated, goroutines
	return true
}
