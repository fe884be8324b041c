package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
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
