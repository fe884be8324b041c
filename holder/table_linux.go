package holder

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NewTable returns a new table for that many connections.
func NewTable(slots int) (*Table, error) {
	fd, err := unix.MemfdCreate("wsbridge-connections", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for the connections' table: %w", err)
	}
	size, chunks := tableSize(slots)
	if err := unix.Ftruncate(fd, size); err == nil {
		// Nobody can take the memory away under a worker's feet.
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("memory for the connections' table: %w", err)
	}
	mem, err := mapTable(fd, size)
	if err != nil {
		return nil, err
	}
	format(mem, slots, chunks)
	return openTable(fd, mem)
}

// OpenTable returns the table that the descriptor stands for, and owns the descriptor.
func OpenTable(fd int) (*Table, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Size < headerSize {
		unix.Close(fd)
		return nil, fmt.Errorf("the connections' table can't be read: %d bytes, %v", stat.Size, err)
	}
	mem, err := mapTable(fd, stat.Size)
	if err != nil {
		return nil, err
	}
	return openTable(fd, mem)
}

func mapTable(fd int, size int64) ([]byte, error) {
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("the connections' table can't be mapped: %w", err)
	}
	return mem, nil
}

func openTable(fd int, mem []byte) (*Table, error) {
	t, err := tableIn(mem)
	if err != nil {
		unix.Munmap(mem)
		unix.Close(fd)
		return nil, err
	}
	t.fd = fd
	return t, nil
}

// giveBack returns the memory of a part of the arena to the system. It reads as zeros then.
func (t *Table) giveBack(from, length int) {
	unix.Madvise(t.arena[from:from+length], unix.MADV_REMOVE) // where that fails it is kept
}
