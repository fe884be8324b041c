package bridge

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wsbridge/upstream"
)

// journal keeps the disconnect events of one run for the next, in files of a directory, a line of JSON for each event. A file stays until
// the backend has taken all of its events: whoever dies meanwhile leaves it for the next run, which posts them again under the same ids. Each file has
// a name of its own, so that two programs with one directory, by mistake, don't write over each other's.
type journal struct{ dir string } // empty: there is none

// journalFile is a file whose events are on their way.
type journalFile struct {
	path string
	left int  // events
	bad  bool // it has lines that can't be read: it is set aside rather than removed
}

// entry is a line of a file.
type entry struct {
	Version int             `json:"version"`
	Event   *upstream.Event `json:"event"`
	File    string          `json:"file,omitempty"` // of the journal, for an event that is in the connections' table as well
}

// journalVersion is that of the entries this program writes, and the only one it reads.
const journalVersion = 1

// maxEntry is the longest line that is read, in bytes: several times what headers of 16 KiB become.
const maxEntry = 256 << 10

var errNoJournal = errors.New("there is no directory to keep it in (WSBRIDGE_STATE_DIR)")

// CheckStateDir returns why disconnect events could not be kept in the directory, or nil.
func CheckStateDir(dir string) error {
	_, err := openJournal(dir)
	return err
}

// openJournal returns the journal in the directory, which it creates if need be and in which it must be able to write.
func openJournal(dir string) (journal, error) {
	if dir == "" {
		return journal{}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return journal{}, err
	}
	probe, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return journal{}, err
	}
	return journal{dir}, errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// write writes the events to a new file, whole or not at all. What they carry of their handshakes is secret, so nobody else may read it.
func (j journal) write(events []*upstream.Event) error {
	if j.dir == "" {
		return errNoJournal
	}
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for _, event := range events {
		if err := encoder.Encode(entry{Version: journalVersion, Event: event}); err != nil {
			return err
		}
	}
	file, err := os.CreateTemp(j.dir, ".goodbyes-") // mode 0600
	if err != nil {
		return err
	}
	_, err = file.Write(lines.Bytes())
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		// CreateTemp has found a name that nobody else has; the time in front of it keeps them in order.
		name := fmt.Sprintf("goodbyes-%d-%s.ndjson", time.Now().UnixNano(), filepath.Base(file.Name())[len(".goodbyes-"):])
		err = os.Rename(file.Name(), filepath.Join(j.dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return j.sync()
}

// sync makes the names of the files last.
func (j journal) sync() error {
	dir, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// read yields the events of all files, the oldest file first. Its errors name a file and are for the log: what can be read is yielded all the
// same.
func (j journal) read(yield func(*upstream.Event, *journalFile)) error {
	if j.dir == "" {
		return nil
	}
	paths, err := filepath.Glob(filepath.Join(j.dir, "goodbyes-*.ndjson"))
	for _, path := range paths {
		content, failure := os.ReadFile(path)
		if failure != nil {
			err = errors.Join(err, failure)
			continue
		}
		file := &journalFile{path: path}
		var events []*upstream.Event
		lines := bufio.NewScanner(bytes.NewReader(content))
		lines.Buffer(nil, maxEntry)
		for number := 1; lines.Scan(); number++ {
			event, failure := parseEntry(lines.Bytes())
			if failure != nil {
				err, file.bad = errors.Join(err, fmt.Errorf("%s, line %d: %w", path, number, failure)), true
				continue
			}
			events = append(events, event)
		}
		if failure := lines.Err(); failure != nil {
			err, file.bad = errors.Join(err, fmt.Errorf("%s: %w", path, failure)), true
		}
		if file.left = len(events); file.left == 0 {
			file.left = 1
			err = errors.Join(err, file.done())
		}
		for _, event := range events {
			yield(event, file)
		}
	}
	return err
}

func parseEntry(line []byte) (*upstream.Event, error) {
	var e entry
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, errors.New("it is no entry of this journal") // the error could quote what is secret
	}
	if e.Version != journalVersion {
		return nil, fmt.Errorf("its version is %d, and %d is read here", e.Version, journalVersion)
	}
	if e.Event == nil || e.Event.Type != upstream.Disconnect || e.Event.Handshake == nil || e.Event.Goodbye == nil || e.Event.ID == "" {
		return nil, errors.New("it is no disconnect event")
	}
	return e.Event, nil
}

// done says that one more event of the file is settled. The last one removes it. A nil file is none.
func (f *journalFile) done() error {
	if f == nil {
		return nil
	}
	if f.left--; f.left > 0 {
		return nil
	}
	if f.bad {
		return os.Rename(f.path, f.path+".bad")
	}
	if err := os.Remove(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
