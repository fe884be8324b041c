package holder

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Table is memory that outlives the worker: a slot for each connection, and an arena for what has no fixed size. The holder makes it and never
// looks into it, but for the slots' owners; workers map it. Whatever a worker changes it changes by one store of a word, so that whoever
// comes after a kill finds either what was before or what is behind it.
type Table struct {
	fd     int
	mem    []byte
	slots  []Slot
	owners []atomic.Uint32 // of the arena's chunks: serials of workers, 0: nobody's
	arena  []byte
}

// Slot is what outlives the worker of one connection, apart from its socket. Positions count bytes of the client's stream behind the handshake; those of
// the kernel count from the beginning of the TCP connection.
type Slot struct {
	Owner  atomic.Uint32 // serial of the worker that has it; 0: nobody; with the released bit: nobody, and the worker says so to the holder
	Gen    atomic.Uint32 // of the connection, among those that had the slot
	Record atomic.Uint64 // Block of the record, with the connection's stage

	// Writing. Log is the Block of a write under way: a LogEntry, and the bytes that are being written. Without one the socket stands between two frames, and
	// Wrote is how many bytes it has taken, as the kernel counts them.
	Log   atomic.Uint64
	Wrote atomic.Uint64

	// Reading. Current says which of two Progresses holds; Posted is the end of the last message that has begun to leave for the backend, and Attempt how often it
	// has. Of a message that is dropped from the socket's buffer while it is read, Large is where it begins and one more.
	Current  atomic.Uint64
	Progress [2]Progress
	Posted   atomic.Uint64
	Attempt  atomic.Uint64
	Sent     atomic.Uint64 // the sequence of that message's event
	Large    atomic.Uint64

	// What has been dropped from the socket's buffer, before the last drop and behind it. Where the two differ the drop may or may not have been done.
	DropFrom atomic.Uint64
	DropTo   atomic.Uint64
	Base     atomic.Uint64 // the kernel's position of the client's first byte behind the handshake

	MessagesOut atomic.Uint64
	BytesOut    atomic.Uint64
	Dropped     atomic.Uint64
	Ended       atomic.Uint64 // how the connection ends, once that is decided: the bridge's code for it
}

// Progress is how far a connection's messages are done with.
type Progress struct {
	Done       atomic.Uint64 // end of the last message that is answered
	Sequence   atomic.Uint64 // of its event
	MessagesIn atomic.Uint64
	BytesIn    atomic.Uint64
}

// LogEntry stands before the bytes of a write under way.
type LogEntry struct {
	Wrote      uint64 // Slot.Wrote before it
	Done       uint64 // end of the message that it answers, 0: of none; the others are its Progress
	Sequence   uint64
	MessagesIn uint64
	BytesIn    uint64
}

// LogEntrySize is the size of a LogEntry, in bytes.
const LogEntrySize = int(unsafe.Sizeof(LogEntry{}))

// Stage is how far a connection is.
type Stage uint64

// The stages.
const (
	StageFree    Stage = iota
	StageOpening       // its 101 has not been sent
	StageOpen
	StageOwed // it is over; the block is its disconnect event, which the backend has not taken
)

// Block is a piece of the arena, and a stage: one word, so that both change at once.
type Block uint64

const (
	offsetBits = 40
	lengthBits = 22

	// MaxBlock is the largest block there can be, in bytes.
	MaxBlock = 1<<lengthBits - 1
)

func newBlock(offset, length int) Block { return Block(length)<<offsetBits | Block(offset) }

// Len returns the block's length in bytes.
func (b Block) Len() int { return int(b>>offsetBits) & MaxBlock }

func (b Block) offset() int { return int(b & (1<<offsetBits - 1)) }

// Stage returns the stage.
func (b Block) Stage() Stage { return Stage(b >> (offsetBits + lengthBits)) }

// In returns the same block with another stage.
func (b Block) In(s Stage) Block {
	return b&(1<<(offsetBits+lengthBits)-1) | Block(s)<<(offsetBits+lengthBits)
}

const (
	tableMagic   = 0x77736272_69646765
	tableVersion = 1
	headerSize   = 4096
	slotSize     = int(unsafe.Sizeof(Slot{}))
	chunkSize    = 64 << 10
	leastArena   = 256 << 20 // bytes; memory is used only where something has been written
	arenaPerSlot = 8 << 10
)

// header is the table's first page.
type header struct {
	magic, version, slots, chunks atomic.Uint64
	used                          atomic.Uint64 // slots that a connection has ever had; looking at the others would make memory of them
	serial                        atomic.Uint32 // of the worker that was started last
	worker                        atomic.Uint64 // that was told to serve: its serial, and behind it its process id
}

// tableSize returns the size of a table with that many slots, in bytes, and how many chunks its arena has.
func tableSize(slots int) (size int64, chunks int) {
	chunks = max(leastArena, slots*arenaPerSlot) / chunkSize
	return int64(arenaOffset(slots, chunks)) + int64(chunks)*chunkSize, chunks
}

func arenaOffset(slots, chunks int) int {
	end := headerSize + slots*slotSize + 4*chunks
	return (end + chunkSize - 1) &^ (chunkSize - 1)
}

// format makes zeroed memory a table.
func format(mem []byte, slots, chunks int) {
	h := (*header)(unsafe.Pointer(&mem[0]))
	h.magic.Store(tableMagic)
	h.slots.Store(uint64(slots))
	h.chunks.Store(uint64(chunks))
	h.version.Store(tableVersion)
}

// tableIn returns the table that the memory holds.
func tableIn(mem []byte) (*Table, error) {
	h := (*header)(unsafe.Pointer(&mem[0]))
	if h.magic.Load() != tableMagic || h.version.Load() != tableVersion {
		return nil, fmt.Errorf("the connections' table has version %d, and %d is read here", h.version.Load(), tableVersion)
	}
	slots, chunks := int(h.slots.Load()), int(h.chunks.Load())
	if want := int64(arenaOffset(slots, chunks)) + int64(chunks)*chunkSize; want != int64(len(mem)) {
		return nil, fmt.Errorf("the connections' table has %d bytes, and its header says %d", len(mem), want)
	}
	at := arenaOffset(slots, chunks)
	return &Table{
		fd: -1, mem: mem,
		slots:  unsafe.Slice((*Slot)(unsafe.Pointer(&mem[headerSize])), slots),
		owners: unsafe.Slice((*atomic.Uint32)(unsafe.Pointer(&mem[headerSize+slots*slotSize])), chunks),
		arena:  mem[at:],
	}, nil
}

// Fd returns the table's descriptor, to be given to another process.
func (t *Table) Fd() int { return t.fd }

// Slots returns how many connections there is room for.
func (t *Table) Slots() int { return len(t.slots) }

// Used returns how many slots, the first ones, a connection has ever had.
func (t *Table) Used() uint32 { return uint32(min(t.header().used.Load(), uint64(len(t.slots)))) }

// Grow returns a slot that no connection has had yet, or false when there is none left.
func (t *Table) Grow() (uint32, bool) {
	n := t.header().used.Add(1)
	return uint32(n - 1), n <= uint64(len(t.slots))
}

// nextSerial returns a number that no worker has had, under whichever holder.
func (t *Table) nextSerial() uint32 { return t.header().serial.Add(1) }

// serves takes note of the worker that is told to serve.
func (t *Table) serves(serial uint32, pid int) {
	t.header().worker.Store(uint64(serial)<<32 | uint64(uint32(pid)))
}

// server returns the worker that was told so last.
func (t *Table) server() (serial uint32, pid int) {
	word := t.header().worker.Load()
	return uint32(word >> 32), int(uint32(word))
}

func (t *Table) header() *header { return (*header)(unsafe.Pointer(&t.mem[0])) }

// Slot returns a slot, counted from 0.
func (t *Table) Slot(i uint32) *Slot { return &t.slots[i] }

// Bytes returns the bytes of a block.
func (t *Table) Bytes(b Block) []byte {
	from, to := b.offset(), b.offset()+b.Len()
	return t.arena[from:to:to]
}

// Holds reports whether the block lies within the arena.
func (t *Table) Holds(b Block) bool { return b.offset()+b.Len() <= len(t.arena) }

// Log returns the entry and the bytes of a write under way.
func (t *Table) Log(b Block) (*LogEntry, []byte) {
	p := t.Bytes(b)
	return (*LogEntry)(unsafe.Pointer(&p[0])), p[LogEntrySize:]
}

// Progressed returns how far the connection's messages are done with.
func (s *Slot) Progressed() *Progress { return &s.Progress[s.Current.Load()&1] }

// Advance takes note of messages that are done with.
func (s *Slot) Advance(done, sequence, messages, bytes uint64) {
	next := 1 - s.Current.Load()&1
	p := &s.Progress[next]
	p.Done.Store(done)
	p.Sequence.Store(sequence)
	p.MessagesIn.Store(messages)
	p.BytesIn.Store(bytes)
	s.Current.Store(next)
}

const released = 1 << 31

// Release gives the slot up, for whoever serves: unsaid where the holder looks through all slots by itself, and else so that the worker tells it.
func (s *Slot) Release(serial uint32, said bool) {
	if said {
		s.Owner.Store(serial | released)
	} else {
		s.Owner.Store(0)
	}
}

// Has reports whether the worker has the slot.
func (s *Slot) Has(serial uint32) bool { return s.Owner.Load() == serial }

// Had reports whether the worker has the slot, or had it last and gave it up with word to the holder.
func (s *Slot) Had(serial uint32) bool { return s.Owner.Load()&^released == serial }

// isReleased reports whether a worker has given the slot up, with word to the holder, and no other has it.
func (s *Slot) isReleased() bool { return s.Owner.Load()&released != 0 }

// Take makes the slot the worker's, if its owner is the given one still.
func (s *Slot) Take(from, serial uint32) bool { return s.Owner.CompareAndSwap(from, serial) }

// Clear empties a slot of the worker's own that is free, for its next connection.
func (s *Slot) Clear() {
	s.Gen.Add(1)
	const kept = unsafe.Offsetof(s.Record) // the owner, who must be known all the time, and what was counted just now
	clear(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(s), kept)), uintptr(slotSize)-kept))
}
