package holder

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Arena is a worker's view of the table's arena: it hands out blocks. Chunks belong to one worker at a time, so that two of them, while
// one hands over to the other, don't meet in one; within a chunk all blocks have one size. What is used is known from the slots alone:
// a worker that is killed leaves no other books.
type Arena struct {
	table  *Table
	serial uint32

	mu     sync.Mutex // guards the following
	chunks map[int]*chunk
	open   map[int][]*chunk // by size: those with room
	next   int              // where a free chunk is looked for
}

// chunk is a chunk of this worker's.
type chunk struct {
	index int
	size  int // of its blocks; larger than the chunk for a run of chunks, whose first this is
	used  int
	free  []uint16
}

// NewArena returns the arena for a worker.
func NewArena(t *Table, serial uint32) *Arena {
	return &Arena{table: t, serial: serial, chunks: map[int]*chunk{}, open: map[int][]*chunk{}}
}

// round returns the size of the block for so many bytes: few sizes, and little wasted.
func round(n int) int {
	if n <= 512 {
		return max((n+63)&^63, 64)
	}
	step := 1 << (bits.Len(uint(n-1)) - 3) // four sizes from one power of two to the next
	return (n + step - 1) &^ (step - 1)
}

// Get returns a block of that length, at most MaxBlock, or false when there is no room. It is not a slot's yet: a worker that is killed loses it.
func (a *Arena) Get(length int) (Block, bool) {
	if length <= 0 || length > MaxBlock {
		return 0, false
	}
	size := round(length)
	a.mu.Lock()
	defer a.mu.Unlock()
	if size > chunkSize/2 {
		return a.run(length)
	}
	open := a.open[size]
	if len(open) == 0 {
		index, ok := a.claim(1)
		if !ok {
			return 0, false
		}
		c := &chunk{index: index, size: size}
		for i := chunkSize/size - 1; i >= 0; i-- {
			c.free = append(c.free, uint16(i))
		}
		a.chunks[index] = c
		open = append(open, c)
		a.open[size] = open
	}
	c := open[len(open)-1]
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	if c.used++; len(c.free) == 0 {
		a.open[size] = open[:len(open)-1]
	}
	return newBlock(c.index*chunkSize+int(i)*size, length), true
}

// run returns a block that has chunks of its own.
func (a *Arena) run(length int) (Block, bool) {
	count := (length + chunkSize - 1) / chunkSize
	index, ok := a.claim(count)
	if !ok {
		return 0, false
	}
	a.chunks[index] = &chunk{index: index, size: count * chunkSize, used: 1}
	return newBlock(index*chunkSize, length), true
}

// claim makes that many chunks in a row this worker's.
func (a *Arena) claim(count int) (first int, ok bool) {
	owners := a.table.owners
	for tried := 0; tried < len(owners); {
		if a.next+count > len(owners) {
			tried += len(owners) - a.next
			a.next = 0
			if count > len(owners) {
				return 0, false
			}
		}
		got := 0
		for got < count && owners[a.next+got].CompareAndSwap(0, a.serial) {
			got++
		}
		first := a.next
		a.next = (first + max(got, 1)) % len(owners)
		if got == count {
			return first, true
		}
		for i := range got {
			owners[first+i].Store(0)
		}
		tried += got + 1
		a.next = (first + got + 1) % len(owners)
	}
	return 0, false
}

// Free gives a block back that no slot has; the zero Block is none. One in another worker's chunk stays used until that worker's chunks are adopted.
func (a *Arena) Free(b Block) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(b)
}

// Replace puts a block, with its stage, in the place of the one that a word of a slot has, and gives that one back. Both are one step: what Adopt finds in no slot
// it takes for free, and somebody may have it by the time it would be given back.
func (a *Arena) Replace(word *atomic.Uint64, b Block) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(Block(word.Swap(uint64(b))))
}

// free gives a block back. The lock is held.
func (a *Arena) free(b Block) {
	if b.Len() == 0 {
		return
	}
	c := a.chunks[b.offset()/chunkSize]
	if c == nil {
		return
	}
	if c.size > chunkSize/2 {
		a.disown(c)
		return
	}
	c.free = append(c.free, uint16(b.offset()%chunkSize/c.size))
	if c.used--; c.used == 0 && len(a.open[c.size]) > 0 {
		a.open[c.size] = slices.DeleteFunc(a.open[c.size], func(other *chunk) bool { return other == c })
		if len(a.open[c.size]) > 0 { // one that is empty stays, for the next
			a.disown(c)
			return
		}
	}
	if !slices.Contains(a.open[c.size], c) {
		a.open[c.size] = append(a.open[c.size], c)
	}
}

// disown gives a chunk, or a run of them, to whoever wants it. The lock is held.
func (a *Arena) disown(c *chunk) {
	delete(a.chunks, c.index)
	length := max(c.size, chunkSize) / chunkSize * chunkSize
	a.table.giveBack(c.index*chunkSize, length)
	for i := range length / chunkSize {
		a.table.owners[c.index+i].Store(0)
	}
}

// Adopt makes the chunks of workers that are dead this worker's, and finds by the slots what is used of them. The lost are told by their serials.
func (a *Arena) Adopt(lost func(serial uint32) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.table
	mine := make(map[int][]Block)
	for i := range t.owners {
		if owner := t.owners[i].Load(); owner != 0 && owner != a.serial && lost(owner) {
			mine[i] = nil
		}
	}
	if len(mine) == 0 {
		return
	}
	for i := range t.Used() {
		for _, word := range [...]uint64{t.slots[i].Record.Load(), t.slots[i].Log.Load()} {
			b := Block(word)
			if b.Len() == 0 || !t.Holds(b) {
				continue
			}
			if used, ok := mine[b.offset()/chunkSize]; ok {
				mine[b.offset()/chunkSize] = append(used, b)
			}
		}
	}
	rest := make(map[int]bool) // chunks of runs, but the first
	for index, blocks := range mine {
		if len(blocks) == 0 {
			continue
		}
		size := round(blocks[0].Len())
		c := &chunk{index: index, size: size}
		if size > chunkSize/2 {
			count := (blocks[0].Len() + chunkSize - 1) / chunkSize
			c.size, c.used = count*chunkSize, 1
			for i := range count {
				rest[index+i] = true
				t.owners[index+i].Store(a.serial)
			}
		} else {
			used := make([]bool, chunkSize/size)
			for _, b := range blocks {
				used[b.offset()%chunkSize/size] = true
			}
			for i := range used {
				if used[i] {
					c.used++
				} else {
					c.free = append(c.free, uint16(i))
				}
			}
			if len(c.free) > 0 {
				a.open[size] = append(a.open[size], c)
			}
			t.owners[index].Store(a.serial)
		}
		a.chunks[index] = c
	}
	for index, blocks := range mine {
		if len(blocks) == 0 && !rest[index] {
			t.giveBack(index*chunkSize, chunkSize)
			t.owners[index].Store(0)
		}
	}
}
