// Package etcd finds peers in etcd, for fleets that have one: a strongly consistent list, which every process sees change
// in the same order.
//
//	client, err := clientv3.New(clientv3.Config{
//		Endpoints:            endpoints,
//		DialKeepAliveTime:    5 * time.Second, // an endpoint that has gone silent is left for another
//		DialKeepAliveTimeout: 2 * time.Second,
//	})
//	cache, err := shoal.New(&shoal.Options{Self: self, Discovery: etcd.New(client, nil)})
//	…
//	err = cache.Shutdown(ctx) // takes this process from the list
//	err = client.Close()
//
// # What is in etcd
//
// Each process that has an address has a key: Options.Prefix and a random name that the process draws at its start, so
// that of two with the same ID, the old one and the new one of a restart, neither can withdraw the other. The value is its
// [shoal.Peer] in JSON. The key belongs to a lease, and the process keeps that alive: who withdraws is off the list at
// once, who crashes when the lease has ended, within TTL and about a second. A process without an address, a client of the
// others, has a lease, which tells it whether it is in touch with etcd, and no key.
//
// Each reads the list once, by a linearizable read, and watches from there on. Changes that come within a tenth of a second
// are taken together. A key that somebody else has deleted is put back. Keys under Prefix that hold no peer are logged,
// once, and passed over; those with another slash in their names are others' business. Where etcd asks who it is, the
// process must be allowed to read and to write what begins with Prefix; a client, to read.
//
// # When etcd is away
//
// The last list stands for as long as etcd is away, and peers go on working by it; they find new ones, and miss those that
// have gone, when it is back. After an outage in which leases have ended, through nobody's fault, each process announces
// itself again, and reads the list again. Not all do so in the same moment; so the list in etcd, which is empty at first,
// is not believed when it says that somebody has gone: for one TTL after a process has been out of touch with etcd, for
// half a TTL or longer, or has had to read the list again for another reason, it takes nobody from its list. An outage of
// etcd takes no keys from their owners, and a peer that has really gone meanwhile is off the list one TTL later. Only a
// process that starts in that moment knows nobody yet but those who are back.
//
// [shoal.Cache.Ready] waits until etcd has been read for the first time; until then shoal tries again and logs why.
package etcd
