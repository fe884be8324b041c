package ratelimit

import (
	"testing"
	"testing/synctest"
	"time"
)

// The rates of the tests are powers of two, so that all times are exact.

func TestAConnectionThatWaitsKeepsToItsRates(t *testing.T) {
	rows := []struct {
		name     string
		config   Config
		messages int
		bytes    int // of each
		want     time.Duration
	}{
		{"messages within the burst don't wait", Config{Messages: 8, MessagesBurst: 16}, 16, 100, 0},
		{"messages behind the burst come at the rate", Config{Messages: 8, MessagesBurst: 16}, 48, 100, 4 * time.Second},
		{"bytes within the burst don't wait", Config{Bytes: 1024, BytesBurst: 2048}, 2, 1024, 0},
		{"bytes behind the burst come at the rate", Config{Bytes: 1024, BytesBurst: 2048}, 10, 1024, 8 * time.Second},
		{"a message larger than the burst waits for the rest of its bytes", Config{Bytes: 1024, BytesBurst: 512}, 1, 4608, 4 * time.Second},
		{"a message of one byte more than the burst waits for that byte", Config{Bytes: 1, BytesBurst: 4}, 1, 5, time.Second},
		{"messages larger than the burst come at the rate", Config{Bytes: 1024, BytesBurst: 512}, 3, 2048, 5500 * time.Millisecond},
		{"of two rates the slower one counts", Config{Messages: 8, MessagesBurst: 1, Bytes: 1024, BytesBurst: 1024}, 9, 1024, 8 * time.Second},
		{"empty messages count as messages", Config{Messages: 1, MessagesBurst: 1, Bytes: 1, BytesBurst: 1}, 5, 0, 4 * time.Second},
		{"a rate below one works", Config{Messages: 0.25, MessagesBurst: 1}, 3, 10, 8 * time.Second},
		{"no burst means twice the rate", Config{Messages: 4}, 12, 10, time.Second},
		{"no burst means one at least", Config{Messages: 0.25}, 2, 10, 4 * time.Second},
		{"no burst of bytes means twice the rate", Config{Bytes: 1024}, 4, 1024, 2 * time.Second},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				connection := row.config.Connection()
				start := time.Now()
				for range row.messages {
					time.Sleep(connection.Take(time.Now(), row.bytes))
				}
				if got := time.Since(start); got != row.want {
					t.Errorf("%d messages of %d bytes took %v, want %v", row.messages, row.bytes, got, row.want)
				}
			})
		})
	}
}

func TestADebtIsPaidByWhoComesNext(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	connection := Config{Bytes: 1024, BytesBurst: 1024}.Connection()
	steps := []struct {
		after time.Duration
		bytes int
		want  time.Duration
	}{
		{0, 3072, 2 * time.Second},
		{0, 1024, 3 * time.Second},
		{time.Second, 0, 2 * time.Second},
		{2 * time.Second, 512, 500 * time.Millisecond},
		{time.Hour, 1024, 0}, // the bucket is full, and no fuller
		{0, 1024, time.Second},
	}
	for i, step := range steps {
		now = now.Add(step.after)
		if got := connection.Take(now, step.bytes); got != step.want {
			t.Errorf("step %d: wait = %v, want %v", i, got, step.want)
		}
	}
}

func TestALargeMessageDoesNotWidenTheBurst(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	connection := Config{Bytes: 1024, BytesBurst: 1024}.Connection()
	connection.Take(now, 1<<20)
	now = now.Add(time.Hour)
	if got := connection.Take(now, 2048); got != time.Second {
		t.Errorf("wait = %v, want %v", got, time.Second)
	}
	now = now.Add(time.Hour)
	if connection.Allow(now, 1025) {
		t.Error("a message larger than the burst passed at once")
	}
}

func TestAConnectionThatIsClosedPassesOnlyWhatNeedNotWait(t *testing.T) {
	type step struct {
		after time.Duration
		bytes int
		want  bool
	}
	rows := []struct {
		name   string
		config Config
		steps  []step
	}{
		{"messages", Config{Messages: 2, MessagesBurst: 2}, []step{
			{0, 9, true}, {0, 9, true}, {0, 9, false}, {499 * time.Millisecond, 9, false}, {time.Millisecond, 9, true}, {0, 9, false},
		}},
		{"bytes", Config{Bytes: 1024, BytesBurst: 1024}, []step{
			{0, 1024, true}, {0, 1, false}, {0, 0, true}, {500 * time.Millisecond, 513, false}, {0, 512, true},
		}},
		{"a message larger than the burst never passes", Config{Bytes: 1024, BytesBurst: 1024}, []step{
			{0, 1025, false}, {time.Hour, 1025, false}, {0, 1024, true},
		}},
		{"who is refused for its bytes keeps its message", Config{Messages: 1, MessagesBurst: 1, Bytes: 1024, BytesBurst: 1024}, []step{
			{0, 1025, false}, {0, 1024, true}, {0, 0, false},
		}},
		{"who is refused for its messages keeps its bytes", Config{Messages: 1, MessagesBurst: 1, Bytes: 1, BytesBurst: 1024}, []step{
			{0, 0, true}, {0, 1024, false}, {time.Second, 1024, true},
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			now := time.Unix(1_000_000_000, 0)
			connection := row.config.Connection()
			for i, step := range row.steps {
				now = now.Add(step.after)
				if got := connection.Allow(now, step.bytes); got != step.want {
					t.Errorf("step %d: passes = %v, want %v", i, got, step.want)
				}
			}
		})
	}
}

func TestRatesThatAreOffLimitNothing(t *testing.T) {
	connection := Config{MessagesBurst: 1, BytesBurst: 1}.Connection()
	if connection != nil {
		t.Fatalf("connection = %v, want nil", connection)
	}
	now := time.Now()
	for range 1000 {
		if wait := connection.Take(now, 1<<20); wait != 0 {
			t.Fatalf("wait = %v, want 0", wait)
		}
		if !connection.Allow(now, 1<<20) {
			t.Fatal("a message didn't pass")
		}
	}
}
