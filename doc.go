// Package shoal is a distributed cache that lives inside your processes, in the style of golang/groupcache.
//
// A process makes a [Cache], mounts it on its HTTP server, and names groups of keys, each with a function that loads a
// value from where it comes from: a database, a service, a computation. Processes that know each other split the keys
// among them. A key is loaded once, by the process that owns it, however many goroutines and processes ask; it is kept
// in that process's memory, and the others fetch it from there.
//
//	cache, err := shoal.New(&shoal.Options{Self: self, Discovery: shoal.Static(all...)})
//	users := shoal.NewGroup(cache, "users", loadUser, &shoal.GroupOptions[User]{TTL: time.Minute})
//	http.Handle("/_shoal/", cache)
//	user, err := users.Get(ctx, id)
//	err = users.Remove(ctx, id) // it has changed
//
// # A Get
//
// What memory holds is returned at once: a hit of a Group[ByteView] or Group[string] neither copies nor allocates. Else,
// if another process owns the key, it is asked, in one exchange; it answers from its memory or loads the value
// itself, and never asks further. If this process owns the key, it runs the [Getter].
//
// While a Getter runs, all who ask for its key wait for that one run, here and at other processes. Each leaves when its
// own context ends; the run goes on until the last has left, or GroupOptions.LoadTimeout has passed. A Getter that
// panics, or calls [runtime.Goexit], gives all who wait a [*PanicError], wherever they are, and the next Get begins
// anew.
//
// # A write
//
// Set, Remove and Purge change what all processes return: when one has returned nil, no Get that starts later, anywhere,
// returns an older value; not from a load or a question that was under way, nor from a copy. The key's owner puts its
// writes in order and, with its replicas, keeps what is written; who may hold a copy is told to drop it before the call returns. In a group
// with a Getter, change the source first, then Set or Remove. In one without, a plain key-value cache, a value lasts
// until its TTL ends or it is evicted, which MaxBytes decides: processes that leave hand it over, and with Owners it outlives one
// that dies. [Add] counts in the same way.
//
// An error of a write joins a [*PeerError] for each process that could not be told. The write may have happened, then;
// until they can be told, which is tried again and again, these processes may return older values. A process that holds
// no more than a copy is no reason for an error: its lease, GroupOptions.HotLease, is waited for. For a minute after a
// process has started, or others have come or gone, all are told of writes of the keys that are new to it, since any of
// them may hold what it loaded before; then each that does not answer is named in the error.
//
// All this holds while processes come and go, and whatever each takes for the truth about who is there, as long as those that
// live reach each other. Where links are cut and lists drop the other side, each side is on its own until the lists name it
// again; then what was written meanwhile is told. While a process cannot reach the owner of a key, what it gets in its place
// may be up to five seconds old.
//
// # Copies of hot keys
//
// A process that asks for another's key often, HotRate times a second, is lent a copy, and answers from it without asking
// until the lease has ended. Only such keys are copied.
//
// # Values that age
//
// After its TTL a value is loaded anew by whoever asks for it next. With GroupOptions.Stale it is served a while longer,
// and replaced by one load in the background; with StaleIfError, also while that load fails. NotFoundTTL and ErrorTTL
// remember what a Getter said in place of a value. [Group.GetEntry] tells how old a value is and where it came from, and
// takes conditions.
//
// # Errors
//
// [ErrNotFound] says that the key has no value, and crosses from process to process as itself. A [*PeerError] says which
// process failed at what: with Op "load" its Getter returned an error, of which the text has come along, and has not
// been tried again here. A process that cannot be reached, is too busy, or answers what is not Shoal's, such as a
// proxy's 404, fails nobody: see below. Only a group without a Getter returns that as a [*PeerError], with Op "get".
// Stats().Peers tells of it in any case. [Group.GetMany] returns what it has, and a [KeyErrors] for the rest.
//
// # Processes come, go and fail
//
// When a key goes to another process, that one finds there what the former owner holds of it, before it loads it, and takes
// over all the rest in the background; [Cache.Shutdown] waits for that. So a deploy, one process after the other, loads next
// to nothing anew. Options.Warm says how long former owners are asked.
//
// A process that does not answer costs callers PeerTimeout once, or half of their time if that is less. From then on they are
// kept from it until it answers again, and the next owner stands in for it: it loads what it is asked for, once for all, and
// keeps it for five seconds at a time, until discovery takes the dead one from the list and it owns the key itself.
// With GroupOptions.Owners several processes keep each key: then nothing is lost with one of them, and nothing of what it had
// is loaded anew. They are in different zones, if Options.Zone says so. Nobody stands in for an owner that is to be written to:
// such a write fails, and in a group without a Getter leaves what was there. Options.Hedge asks the next owner also where the
// owner is only slow.
//
// # Who owns a key
//
// A [Discovery] lists the addresses of all processes, this one among them: [Static] a list of them, package discovery/dns the
// hosts that a name stands for, and, in modules of their own, discovery/memberlist whoever takes part in its gossip and
// discovery/etcd who has said so there. Each is asked who it is, and becomes a peer, under its ID, when it has answered, until
// it is no longer listed, or says that it leaves; [Cache.Ready] waits for that. Owners are chosen by package consistenthash
// among the peers that a process sees, in proportion to Options.Weight. Processes that see different peers choose differently for some keys: both answer, and
// neither waits for the other, but such a key may be loaded twice. A process that is not on its own list owns nothing
// and is the others' client; one without any list owns everything.
//
// # Memory
//
// GroupOptions.MaxBytes bounds what a group takes in one process: keys, values, and what it costs to keep them. What has
// expired makes room first, then what is least likely to be asked for again, by S3-FIFO, or what was used least recently,
// with GroupOptions.LRU. A value that would take more than an eighth of it is served and not kept.
//
// A ByteView or string from a Get shares its memory with other values of the group. What is to be held for long, beyond a
// request, is better cloned, or it keeps up to a megabyte of them alive.
//
// # Testing
//
// Package cachetest makes clusters in memory, with faults, for use inside testing/synctest. Module checker, beside this
// one, makes them work under faults, and checks what every call returned against what is promised here.
//
// # Compatibility
//
// The wire, shoalpb/shoal.proto, has a version in its content type, and fields are only ever added. A Cache mounted at
// /_groupcache/ also answers golang/groupcache's clients, and consistenthash.Ring(50, nil) chooses the owners that
// groupcache does, so that a fleet can change over process by process.
package shoal
