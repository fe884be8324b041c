package holder

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// memoryTable returns a table in ordinary memory.
func memoryTable(t *testing.T, slots int) *Table {
	t.Helper()
	size, chunks := tableSize(slots)
	mem := make([]byte, size)
	format(mem, slots, chunks)
	table, err := tableIn(mem)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestBlocksNeverOverlapWhoeverIsKilled lets workers take and give back blocks at random, die, and be succeeded, two at a time for a while. What slots refer to
// keeps its bytes, and what they don't is free again behind the worker that knew of it.
func TestBlocksNeverOverlapWhoeverIsKilled(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	const slots = 300
	table := memoryTable(t, slots)
	for range slots {
		table.Grow()
	}
	if _, ok := table.Grow(); ok {
		t.Error("a table for 300 connections has room for another")
	}
	fill := func(b Block, with byte) {
		for i := range table.Bytes(b) {
			table.Bytes(b)[i] = with
		}
	}
	want := map[uint32]byte{} // what each slot's block is filled with
	check := func() {
		for i, with := range want {
			for _, got := range table.Bytes(Block(table.Slot(i).Record.Load())) {
				if got != with {
					t.Fatalf("a block is another's as well (seed %d)", seed)
				}
			}
		}
	}
	serial := uint32(1)
	arena := NewArena(table, serial)
	for round := range 40 {
		var unknown []Block // which no slot refers to
		for range 2000 {
			i := uint32(random.IntN(slots))
			length := 1 + random.IntN(3000)
			if random.IntN(50) == 0 {
				length = 1 + random.IntN(500_000)
			}
			block, ok := arena.Get(length)
			if !ok {
				t.Fatalf("no room for %d bytes (seed %d)", length, seed)
			}
			if block.Len() != length || block.In(StageOwed).Stage() != StageOwed || block.In(StageOwed).Len() != length {
				t.Fatalf("a block of %d bytes has %d (seed %d)", length, block.Len(), seed)
			}
			with := byte(random.IntN(256))
			fill(block, with)
			if random.IntN(20) == 0 && len(unknown) < 20 {
				unknown = append(unknown, block)
				continue
			}
			arena.Free(Block(table.Slot(i).Record.Swap(uint64(block.In(StageOpen)))))
			want[i] = with
			if random.IntN(10) == 0 {
				arena.Free(Block(table.Slot(i).Record.Swap(0)))
				delete(want, i)
			}
		}
		check()
		serial++
		next := NewArena(table, serial)
		if round%2 == 0 { // killed
			next.Adopt(func(uint32) bool { return true })
		} else { // the old one goes on for a while beside the new one
			for range 100 {
				for _, a := range []*Arena{arena, next} {
					i := uint32(random.IntN(slots))
					if block, ok := a.Get(1 + random.IntN(2000)); ok {
						fill(block, byte(i))
						a.Free(Block(table.Slot(i).Record.Swap(uint64(block.In(StageOpen)))))
						want[i] = byte(i)
					}
				}
			}
			check()
			old := serial - 1
			next.Adopt(func(lost uint32) bool { return lost == old })
		}
		arena = next
	}
	for i := range want {
		arena.Free(Block(table.Slot(i).Record.Swap(0)))
	}
	serial++
	NewArena(table, serial).Adopt(func(uint32) bool { return true })
	for i := range table.owners {
		if table.owners[i].Load() != 0 {
			t.Fatalf("chunk %d is somebody's though nothing is used (seed %d)", i, seed)
		}
	}
}

// TestChunksAreAdoptedWhileTheirBlocksAreReplaced lets a worker that serves adopt what a dead one had while some of its connections replace their records: no two
// connections ever have one block.
func TestChunksAreAdoptedWhileTheirBlocksAreReplaced(t *testing.T) {
	const slots, length, rounds = 60_000, 200, 5
	table := memoryTable(t, slots)
	for range slots {
		table.Grow()
	}
	for round := range uint32(rounds) {
		dead, serving := NewArena(table, 2*round+1), NewArena(table, 2*round+2)
		get := func(arena *Arena) Block {
			block, ok := arena.Get(length)
			if !ok {
				t.Fatal("no room")
			}
			return block.In(StageOpen)
		}
		for i := range uint32(slots) {
			dead.Replace(&table.Slot(i).Record, get(dead))
		}
		var blocks []Block // so that replacing is all that is done beside the adoption
		for range slots / 2 {
			blocks = append(blocks, get(serving))
		}
		var begun atomic.Bool
		var both sync.WaitGroup
		both.Go(func() {
			for i, block := range blocks {
				begun.Store(i > slots/8)
				serving.Replace(&table.Slot(uint32(slots-1-2*i)).Record, block) // every other one, and the last first
			}
		})
		both.Go(func() {
			for !begun.Load() {
			}
			serving.Adopt(func(serial uint32) bool { return serial == 2*round+1 })
		})
		both.Wait()
		has := map[int]bool{}
		for i := range uint32(slots) {
			has[Block(table.Slot(i).Record.Load()).offset()] = true
		}
		for range slots { // all that is free in chunks of the dead one, and more
			has[get(serving).offset()] = true
		}
		if len(has) != 2*slots {
			t.Fatalf("round %d: %d blocks are %d", round, 2*slots, len(has))
		}
		next := NewArena(table, 2*rounds+1)
		for i := range uint32(slots) {
			table.Slot(i).Record.Store(0)
		}
		next.Adopt(func(uint32) bool { return true })
	}
}

func TestTheArenaIsBounded(t *testing.T) {
	table := memoryTable(t, 1)
	arena := NewArena(table, 1)
	n := 0
	for {
		if _, ok := arena.Get(MaxBlock); !ok {
			break
		}
		n++
	}
	if most := len(table.arena) / MaxBlock; n > most || n < most/2 {
		t.Errorf("%d blocks of %d bytes in %d", n, MaxBlock, len(table.arena))
	}
	for _, length := range []int{0, -1, MaxBlock + 1} {
		if _, ok := arena.Get(length); ok {
			t.Errorf("a block of %d bytes", length)
		}
	}
}

func TestATableOfAnotherVersionIsRefused(t *testing.T) {
	table := memoryTable(t, 1)
	table.header().version.Store(tableVersion + 1)
	if _, err := tableIn(table.mem); err == nil {
		t.Error("it was read")
	}
}
