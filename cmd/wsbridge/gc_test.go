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
