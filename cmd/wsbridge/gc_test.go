package main

import (
	"testing"
	"time"
)

func TestGarbageIsBoundedByTheLargerOfAnAmountAndAShare(t *testing.T) {
	began := time.Now()
	for _, row := range []struct {
		live                uint64
		calm, rushs, crowds int
	}{
		{0, 100, 400, 50}, {1 << 20, 100, 400, 50}, {4 << 20, 100, 400, 50}, {8 << 20, 50, 200, 25}, {16 << 20, 40, 100, 25}, {32 << 20, 40, 50, 25}, {40 << 20, 40, 40, 25}, {1 << 40, 40, 40, 25},
	} {
		for what, test := range map[string]struct {
			in                 time.Duration
			allocated, arrived uint64
			want               int
		}{
			"the first":          {time.Since(time.Time{}), 1 << 20, 0, row.calm},
			"little":             {time.Second, rushFrom, 0, row.calm},
			"many messages":      {time.Second / 10, rushFrom, 0, row.rushs},
			"some handshakes":    {time.Second / 10, rushFrom, 100, row.rushs},
			"handshakes for all": {time.Second / 10, rushFrom, 1000, row.crowds},
			"few handshakes":     {time.Second, rushFrom / 100, 10, row.crowds},
		} {
			p := pace{at: began, allocated: 1 << 30, arrived: 5000}
			if got := p.percent(began.Add(test.in), row.live, p.allocated+test.allocated, p.arrived+test.arrived); got != test.want {
				t.Errorf("%d live, %s: %d %%, want %d", row.live, what, got, test.want)
			}
		}
	}
}

func TestMemoryIsGivenBackOnceBehindWhatWasBusy(t *testing.T) {
	var q quiet
	for i, row := range []struct {
		allocated, goroutines uint64
		want                  bool
	}{
		{1 << 20, 10, false}, {1 << 20, 10, false}, // it has not been worth it yet, beside what is in use
		{100 << 20, 5000, false}, {200 << 20, 10_000, false}, // busy
		{200<<20 + 1000, 10_000, true}, {200<<20 + 2000, 10_000, false}, // and at rest: once
		{200<<20 + 3000, 9500, false}, {200<<20 + 4000, 9000, true}, {200<<20 + 5000, 9000, false}, // many have ended
		{202<<20 + 4000, 9000, false}, {202<<20 + 4000, 9000, true},
	} {
		if got := q.comes(row.allocated, row.goroutines, 8<<20); got != row.want {
			t.Errorf("%d: comes(%d, %d) = %t, want %t", i, row.allocated, row.goroutines, got, row.want)
		}
	}
}
