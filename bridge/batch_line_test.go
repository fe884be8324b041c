package bridge

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// plainLines are lines of a batch, and whether they are plain.
var plainLines = []struct {
	line  string
	plain bool
}{
	{`{"to":"/groups/a","body":"hello"}`, true},
	{" { \"to\" : \"/users/ü\" ,\t\"body\" : \"héé {}[],: \" } \r\n", true},
	{`{"to":"","body":""}`, true},
	{`{"to":"/groups/a","body":"a\"b"}`, false},
	{`{"to":"/groups/a","body":"a` + "\t" + `b"}`, false},
	{`{"to":"/groups/a","body":"a","ttl":"1s"}`, false},
	{`{"body":"a","to":"/groups/a"}`, false},
	{`{"to":"/groups/a","body":"a"}}`, false},
	{`{"to":"/groups/a","body":"a"} {}`, false},
	{`{"to":"/groups/a","body":"a"`, false},
	{`{"to":"/groups/a","body":"a`, false},
	{`{"to":"/groups/a","Body":"a"}`, false},
	{`{"to":"/groups/a","body":null}`, false},
	{`{"to":"/groups/a" "body":"a"}`, false},
	{`{"to":"/groups/a","body":"a",}`, false},
	{`["to"]`, false},
	{``, false},
}

func TestAPlainLineIsReadAsJSON(t *testing.T) {
	for _, row := range plainLines {
		if got := compareLine(t, []byte(row.line)); got != row.plain {
			t.Errorf("%q is plain: %t, want %t", row.line, got, row.plain)
		}
	}
}

// FuzzPlainLine looks for a line that is read in another way than encoding/json reads it.
func FuzzPlainLine(f *testing.F) {
	for _, row := range plainLines {
		f.Add([]byte(row.line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if utf8.Valid(line) {
			compareLine(t, line)
		}
	})
}

// compareLine reports whether a line is read as a plain one. Then it must be JSON, with the same in it.
func compareLine(t *testing.T, line []byte) bool {
	t.Helper()
	to, body, plain := plainLine(bytes.Clone(line))
	if !plain {
		return false
	}
	var want batchLine
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&want); err != nil || decoder.More() || want.Body == nil || want.To != string(to) || *want.Body != string(body) {
		t.Errorf("%q is read as %q, %q, and encoding/json reads %+v, %v", line, to, body, want, err)
	}
	return true
}
