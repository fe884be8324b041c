package upstream

import (
	"encoding/json"
	"regexp"
	"slices"
	"testing"
)

func TestTheListOfEventsIsRead(t *testing.T) {
	rows := []struct {
		text string
		want Types
	}{
		{"connect,message,disconnect", Types{Connect, Message, Disconnect}},
		{"message", Types{Message}},
		{" message , disconnect ", Types{Message, Disconnect}},
	}
	for _, row := range rows {
		var got Types
		if err := got.UnmarshalText([]byte(row.text)); err != nil || !slices.Equal(got, row.want) {
			t.Errorf("%q: got = %v, %v, want %v", row.text, got, err, row.want)
		}
		var again Types
		if err := again.UnmarshalText([]byte(got.String())); err != nil || !slices.Equal(again, got) {
			t.Errorf("%q: written and read again = %v, %v, want %v", row.text, again, err, got)
		}
	}
}

func TestAnEventThatThereIsNotIsAnError(t *testing.T) {
	for _, text := range []string{"", ",", "connect,", "Connect", "wsbridge.connect", "connect;message", "open"} {
		got := Types{Message}
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %v", text, got)
		} else if !slices.Equal(got, Types{Message}) {
			t.Errorf("%q: a fault changed the list to %v", text, got)
		}
	}
}

func TestOnlyTheListedEventsAreWanted(t *testing.T) {
	c := &Client{config: Config{Events: Types{Connect, Message}}}
	for kind, want := range map[Type]bool{Connect: true, Message: true, Disconnect: false} {
		if got := c.Wants(kind); got != want {
			t.Errorf("wants %s = %v, want %v", kind, got, want)
		}
	}
}

func TestEveryOutcomeHasALabelOfItsOwn(t *testing.T) {
	label := regexp.MustCompile(`^[a-z]+$`)
	seen := map[string]Outcome{}
	for o := Accepted; o <= Invalid; o++ {
		name := o.String()
		if before, twice := seen[name]; twice || !label.MatchString(name) {
			t.Errorf("label of %d = %q, and of %d", o, name, before)
		}
		seen[name] = o
	}
}

func TestAGoodbyeSaysWhatTheContractLists(t *testing.T) {
	said, err := json.Marshal(Goodbye{Code: 1006, Reason: `"é`, By: "client", Seconds: 1.5, MessagesIn: 1, MessagesOut: 2, BytesIn: 3, BytesOut: 1 << 60})
	want := `{"code":1006,"reason":"\"é","by":"client","seconds":1.5,"messages_in":1,"messages_out":2,"bytes_in":3,"bytes_out":1152921504606846976}`
	if err != nil || string(said) != want {
		t.Errorf("got = %s, %v, want %s", said, err, want)
	}
}
