package bridge

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"wsbridge/upstream"
)

var someRecord = record{
	ID: "id", Since: time.Unix(0, 1_700_000_000_123_456_789), Subprotocol: "chat", Window: 15, User: "ann", State: "st", Groups: []string{"a", "b"},
	Handshake: &upstream.Handshake{
		Path: "/ws", Query: "x=1", RequestHost: "example.org", Cookie: "a=b", ForwardedFor: "10.0.0.1", Proto: "https", Host: "example.org", Address: "10.0.0.1",
		Header: []upstream.Field{{Name: "Origin", Value: "https://example.org"}, {Name: "User-Agent", Value: strings.Repeat("long ", 500)}},
	},
}

func TestARecordComesBackAsItWas(t *testing.T) {
	for _, r := range []record{someRecord, {ID: "x", Since: time.Unix(0, 0), Handshake: &upstream.Handshake{}}} {
		got, err := decodeRecord(r.encode(nil))
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%+v came back as %+v, %v", r, got, err)
		}
	}
}

func TestARecordOfAnotherVersionOrADamagedOneIsRefused(t *testing.T) {
	whole := someRecord.encode(nil)
	for i := range whole {
		if _, err := decodeRecord(whole[:i]); err == nil {
			t.Errorf("%d of %d bytes were taken for a record", i, len(whole))
		}
	}
	if _, err := decodeRecord(append(bytes.Clone(whole), 0)); err == nil {
		t.Error("a record with a byte more was taken")
	}
	whole[0]++
	if _, err := decodeRecord(whole); err == nil {
		t.Error("a record of another version was taken")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(someRecord.encode(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := decodeRecord(p); err == nil {
			if again, err := decodeRecord(r.encode(nil)); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%+v came back as %+v, %v", r, again, err)
			}
		}
	})
}
