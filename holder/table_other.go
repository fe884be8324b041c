//go:build !linux

package holder

func (t *Table) giveBack(from, length int) { clear(t.arena[from : from+length]) }
