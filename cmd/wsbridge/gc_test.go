package main

import "testing"

func TestGarbageIsBoundedByTheLargerOfAnAmountAndAShare(t *testing.T) {
	for _, row := range []struct {
		live uint64
		want int
	}{{0, 400}, {1 << 20, 400}, {4 << 20, 400}, {16 << 20, 100}, {32 << 20, 50}, {40 << 20, 40}, {1 << 40, 40}} {
		if got := gcPercent(row.live); got != row.want {
			t.Errorf("gcPercent(%d) = %d, want %d", row.live, got, row.want)
		}
	}
}

func TestMemoryIsGivenBackOnceBehindWhatWasBusy(t *testing.T) {
	var q quiet
	for i, row := range []struct {
		allocated, goroutines uint64
		want                  bool
	}{
		{1 << 20, 10, false}, {1 << 20, 10, false}, // it has not been worth it yet
		{100 << 20, 5000, false}, {200 << 20, 10_000, false}, // busy
		{200<<20 + 1000, 10_000, true}, {200<<20 + 2000, 10_000, false}, // and at rest: once
		{200<<20 + 3000, 9500, false}, {200<<20 + 4000, 9000, true}, {200<<20 + 5000, 9000, false}, // many have ended
		{208<<20 + 4000, 9000, false}, {208<<20 + 4000, 9000, true},
	} {
		if got := q.comes(row.allocated, row.goroutines); got != row.want {
			t.Errorf("%d: comes(%d, %d) = %t, want %t", i, row.allocated, row.goroutines, got, row.want)
		}
	}
}
