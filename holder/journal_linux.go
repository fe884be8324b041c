package holder

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Where holder and workers are killed at once the table goes with them, and only a file can say whose disconnect events are still owed. The journal is
// a copy of what is needed for that, no more than a moment old. It is lost with the machine's memory: nobody waits for a disk.
const (
	// journalName is the log: an entry whenever the record or the stage of a connection has changed. numbersName has the numbers that change with each message,
	// by slot.
	journalName = "connections.journal"
	numbersName = "connections.numbers"
	// scanEvery is how often changes are looked for. In every deepScan of those scans the numbers are, too.
	scanEvery = 100 * time.Millisecond
	deepScan  = 10
	// A log is written anew when it has become that much, in bytes, and as many times larger than what it is good for.
	leastLog   = 1 << 20
	logFactor  = 4
	entryHead  = 4 + 4 + 4 + 4 + 1 // length of the rest, its checksum; slot, generation, stage
	numberSize = 64
)

type journal struct {
	dir   string
	table *Table
	log   *slog.Logger

	mu      sync.Mutex // guards the following
	file    *os.File
	numbers *os.File
	size    int64
	live    int64 // bytes of entries that count
	seen    []noted
	said    []byte // numbers as they are in the file
	failed  bool   // it has been said in the log
}

// noted is what the log says of a slot.
type noted struct {
	gen    uint32
	sum    uint32 // of the record
	word   uint64
	length int // of the entry; 0: there is none that counts
}

// openJournal opens the journal in the directory, which it creates if need be, or returns nil where that can't be.
func openJournal(dir string, table *Table, log *slog.Logger) *journal {
	j := &journal{dir: dir, table: table, log: log}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		j.file, err = os.OpenFile(j.path(), os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err == nil {
		if err = unix.Flock(int(j.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			j.numbers, err = os.OpenFile(filepath.Join(dir, numbersName), os.O_RDWR|os.O_CREATE, 0o600)
		} else {
			err = fmt.Errorf("another wsbridge uses it: %w", err)
		}
	}
	if err != nil {
		j.complain(err)
		return nil
	}
	return j
}

func (j *journal) path() string { return filepath.Join(j.dir, journalName) }

func (j *journal) complain(err error) {
	if !j.failed {
		j.failed = true
		j.log.Error("the journal of open connections can't be kept: where everything is killed at once their disconnect events are lost", "dir", j.dir, "error", err)
	}
}

// load puts into the table what the journal says was open when everything ended, as a worker with that serial would have left it. It returns how many
// those are.
func (j *journal) load(serial uint32) (n int) {
	data, err := os.ReadFile(j.path())
	if err != nil {
		j.complain(err)
		return 0
	}
	numbers, _ := os.ReadFile(j.numbers.Name()) // without them the sequence is that of the beginning
	last := map[uint32][]byte{}
	var order []uint32
	for len(data) >= entryHead {
		length := int(binary.LittleEndian.Uint32(data))
		if length < entryHead-8 || length > len(data)-8 || crc32.Checksum(data[8:8+length], castagnoli) != binary.LittleEndian.Uint32(data[4:]) {
			break // the rest was being written
		}
		entry := data[8 : 8+length]
		slot := binary.LittleEndian.Uint32(entry)
		if _, ok := last[slot]; !ok {
			order = append(order, slot)
		}
		last[slot] = entry
		data = data[8+length:]
	}
	arena := NewArena(j.table, serial)
	for _, from := range order {
		entry := last[from]
		gen, stage, record := binary.LittleEndian.Uint32(entry[4:]), Stage(entry[8]), entry[9:]
		switch stage {
		case StageFree:
			continue
		case StageOpening:
			stage = StageOpen // it has come that far by the next moment
		}
		block, ok := arena.Get(len(record))
		if !ok {
			break
		}
		index, ok := j.table.Grow()
		if !ok {
			break
		}
		copy(j.table.Bytes(block), record)
		slot := j.table.Slot(index)
		slot.Take(0, serial)
		slot.Clear()
		slot.Posted.Store(1) // the backend has heard of it
		slot.Wrote.Store(1)  // and its client of us
		if at := int(from) * numberSize; at+numberSize <= len(numbers) && binary.LittleEndian.Uint32(numbers[at:]) == gen {
			slot.setNumbers(numbers[at : at+numberSize])
		}
		slot.Record.Store(uint64(block.In(stage)))
		n++
	}
	return n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// begin makes the journal one of the table as it is.
func (j *journal) begin() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.renew()
	j.count(j.table.Used())
}

// keep keeps the journal until done is closed.
func (j *journal) keep(done <-chan struct{}) {
	scans := time.NewTicker(scanEvery)
	defer scans.Stop()
	for n := 1; ; n++ {
		select {
		case <-done:
			return
		case <-scans.C:
			j.mu.Lock()
			j.scan(n%deepScan == 0)
			j.mu.Unlock()
		}
	}
}

// note takes note of a connection at once.
func (j *journal) note(slot uint32) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return
	}
	var entry bytes.Buffer
	j.look(slot, false, &entry)
	j.write(entry.Bytes())
}

// remove ends the journal: nothing is owed any more, or all that is has gone into another place.
func (j *journal) remove() {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	os.Remove(j.path())
	os.Remove(j.numbers.Name())
	j.file.Close()
	j.numbers.Close()
	j.file = nil
}

// scan takes note of what has changed. The lock is held, here and in what follows.
func (j *journal) scan(deep bool) {
	if j.file == nil {
		return // removed
	}
	var entries bytes.Buffer
	used := j.table.Used()
	for slot := range used {
		j.look(slot, deep, &entries)
	}
	if deep {
		j.count(used)
	}
	if j.write(entries.Bytes()); j.size > max(leastLog, logFactor*j.live) {
		j.renew()
	}
}

// look adds an entry if what the log says of a slot is not what it is any more.
func (j *journal) look(index uint32, deep bool, entries *bytes.Buffer) {
	for len(j.seen) <= int(index) {
		j.seen = append(j.seen, noted{})
	}
	slot, seen := j.table.Slot(index), &j.seen[index]
	gen, word := slot.Gen.Load(), slot.Record.Load()
	if seen.gen == gen && seen.word == word && (!deep || word == 0) {
		return
	}
	block := Block(word)
	if block.Stage() == StageFree || block.Stage() == StageOpening && slot.Posted.Load() == 0 { // the backend has not heard of it
		if seen.length > 0 {
			appendEntry(entries, index, gen, StageFree, nil)
			j.live -= int64(seen.length)
		}
		*seen = noted{gen: gen, word: word}
		if block.Stage() != StageFree {
			seen.word = 0 // what makes it count is no change of the word
		}
		return
	}
	if !j.table.Holds(block) {
		return
	}
	record := bytes.Clone(j.table.Bytes(block))
	if slot.Gen.Load() != gen || slot.Record.Load() != word {
		return // it has changed meanwhile: the next scan finds what it is then
	}
	sum := crc32.Checksum(record, castagnoli)
	if seen.length > 0 && seen.gen == gen && seen.sum == sum && Block(seen.word).Stage() == block.Stage() {
		seen.word = word
		return
	}
	j.live -= int64(seen.length)
	*seen = noted{gen, sum, word, appendEntry(entries, index, gen, block.Stage(), record)}
	j.live += int64(seen.length)
}

func appendEntry(to *bytes.Buffer, slot, gen uint32, stage Stage, record []byte) (length int) {
	entry := make([]byte, 8, entryHead+len(record))
	entry = binary.LittleEndian.AppendUint32(entry, slot)
	entry = binary.LittleEndian.AppendUint32(entry, gen)
	entry = append(append(entry, byte(stage)), record...)
	binary.LittleEndian.PutUint32(entry, uint32(len(entry)-8))
	binary.LittleEndian.PutUint32(entry[4:], crc32.Checksum(entry[8:], castagnoli))
	to.Write(entry)
	return len(entry)
}

// write appends to the log.
func (j *journal) write(entries []byte) {
	if len(entries) == 0 {
		return
	}
	n, err := j.file.Write(entries)
	if j.size += int64(n); err != nil {
		j.complain(err)
	}
}

// count takes note of the numbers.
func (j *journal) count(used uint32) {
	now := make([]byte, int(used)*numberSize)
	for i := range used {
		j.table.Slot(i).numbers(now[int(i)*numberSize:])
	}
	const page = 4096 // of the file: what has not changed in it is not written
	for at := 0; at < len(now); at += page {
		end := min(at+page, len(now))
		if end <= len(j.said) && bytes.Equal(now[at:end], j.said[at:end]) {
			continue
		}
		if _, err := j.numbers.WriteAt(now[at:end], int64(at)); err != nil {
			j.complain(err)
		}
	}
	j.said = now
}

// renew writes the log anew, without what does not count any more.
func (j *journal) renew() {
	var entries bytes.Buffer
	clear(j.seen)
	j.live = 0
	for slot := range j.table.Used() {
		j.look(slot, false, &entries)
	}
	next, err := os.OpenFile(j.path()+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = unix.Flock(int(next.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		_, err = next.Write(entries.Bytes())
	}
	if err == nil {
		err = os.Rename(next.Name(), j.path())
	}
	if err != nil {
		if j.complain(err); next != nil {
			next.Close()
		}
		j.size = 0 // the one before grows on, and is tried again when it has grown by as much
		return
	}
	j.file.Close()
	j.file, j.size = next, int64(entries.Len())
}

// numbers writes down what changes with each message.
func (s *Slot) numbers(p []byte) {
	progress := s.Progressed()
	binary.LittleEndian.PutUint32(p, s.Gen.Load())
	for i, n := range [...]uint64{
		progress.Done.Load(), progress.Sequence.Load(), progress.MessagesIn.Load(), progress.BytesIn.Load(), s.MessagesOut.Load(), s.BytesOut.Load(), s.Dropped.Load(),
	} {
		binary.LittleEndian.PutUint64(p[8+8*i:], n)
	}
}

// setNumbers reads them.
func (s *Slot) setNumbers(p []byte) {
	n := func(i int) uint64 { return binary.LittleEndian.Uint64(p[8+8*i:]) }
	s.Advance(n(0), n(1), n(2), n(3))
	s.MessagesOut.Store(n(4))
	s.BytesOut.Store(n(5))
	s.Dropped.Store(n(6))
}
