package upstream

import (
	"strings"
	"testing"
	"time"
)

func TestASignatureIsThatOfTheSpecificationsExample(t *testing.T) {
	var s Secrets
	if err := s.UnmarshalText([]byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")); err != nil {
		t.Fatal(err)
	}
	timestamp, signature := s.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if timestamp != "1614265330" || signature != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("got = %s %s", timestamp, signature)
	}
}

func TestASecretIsParsedOrRefusedWithoutBeingShown(t *testing.T) {
	const good = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for _, row := range []struct {
		text string
		want int // secrets; 0: a fault
	}{
		{good, 1}, {good + "," + good, 2}, {good + " , " + good, 2},
		{"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 0}, {"whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 0}, {"whsec_", 0}, {"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", 0},
		{"whsec_c2hvcnQ=", 0}, {good + ",", 0}, {"whsec_" + strings.Repeat("AAAA", 22), 0},
	} {
		var s Secrets
		err := s.UnmarshalText([]byte(row.text))
		if len(s) != row.want || (err == nil) != (row.want > 0) {
			t.Errorf("%q: got = %d, %v, want %d", row.text, len(s), err, row.want)
		}
		if err != nil && strings.Contains(err.Error(), "MfKQ9") || strings.Contains(s.String(), "MfKQ9") {
			t.Errorf("%q: the secret is shown: %v %v", row.text, err, s)
		}
	}
}

func TestEveryEventIsSignedOverItsBodyAsItIsSent(t *testing.T) {
	var s Secrets
	if err := s.UnmarshalText([]byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw,whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")); err != nil {
		t.Fatal(err)
	}
	c := &Client{config: Config{Secret: s}}
	e := text("hello")
	p := request(t, c, e)
	id, timestamp, signature := p.value("webhook-id"), p.value("webhook-timestamp"), p.value("webhook-signature")
	seconds, err := time.ParseDuration(timestamp + "s")
	if err != nil || id != e.ID {
		t.Fatalf("webhook-id = %s, webhook-timestamp = %s", id, timestamp)
	}
	if _, want := s.sign(e.ID, time.Unix(int64(seconds.Seconds()), 0), []byte("hello")); signature != want || strings.Count(signature, "v1,") != 2 {
		t.Errorf("webhook-signature = %s, want %s", signature, want)
	}
	if p := request(t, &Client{}, e); p.values("webhook-id") != nil || p.values("webhook-signature") != nil {
		t.Error("signed without a secret")
	}
}
