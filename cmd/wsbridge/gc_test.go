package main

import "testing"

func TestGarbageIsBoundedByTheLargerOfAnAmountAndAShare(t *testing.T) {
	for _, row := range []struct {
		live uint64
		want int
	}{{0, 600}, {1 << 20, 600}, {4 << 20, 600}, {24 << 20, 100}, {48 << 20, 50}, {60 << 20, 40}, {1 << 40, 40}} {
		if got := gcPercent(row.live); got != row.want {
			t.Errorf("gcPercent(%d) = %d, want %d", row.live, got, row.want)
		}
	}
}
