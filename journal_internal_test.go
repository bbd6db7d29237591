package shoal

import (
	"testing"
	"time"
)

// Who may have missed a purge that is not remembered any more drops all; who has come back since then does not.
func TestPurgesThatAreForgottenDropAll(t *testing.T) {
	var j journal
	for n := range uint64(mostPurges + 2) {
		j.purged(n, n, time.Duration(n+1)*time.Second)
	}
	if _, all := j.since(2*time.Second, time.Hour); !all.GetAll() || all.Owned {
		t.Errorf("since the second purge: %v", all)
	}
	if _, all := j.since(3*time.Second, time.Hour); all.GetAll() || len(all.GetPurges()) != mostPurges {
		t.Errorf("since the third: %v", all)
	}
	if _, all := j.since(time.Hour, time.Hour); all != nil {
		t.Errorf("since none: %v", all)
	}
	j.purged(1000, mostPurges, time.Minute)
	const later = time.Hour
	if !j.hasGoneThrough(999, mostPurges, later) || j.hasGoneThrough(1001, mostPurges, later) || j.hasGoneThrough(1, 1, later) {
		t.Error("it takes one purge for another")
	}
	if !j.hasGoneThrough(1, 1, mostPurges*time.Second) {
		t.Error("it has been emptied since another had heard of that purge")
	}
	if _, all := j.since(3*time.Second, time.Hour); len(all.GetPurges()) != mostPurges {
		t.Errorf("with a later one of a process that has purged before: %d", len(all.GetPurges()))
	}
}
