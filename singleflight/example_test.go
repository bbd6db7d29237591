package singleflight_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/shoalcache/shoal/singleflight"
)

func ExampleGroup_Do() {
	var users singleflight.Group[int, string]
	name, err := users.Do(context.Background(), 42, 0, func(ctx context.Context, _ *singleflight.Flight[int, string]) (string, error) {
		return "Ada", nil // whoever asks for 42 until this returns gets it too
	})
	fmt.Println(name, err)
	// Output: Ada <nil>
}

func ExampleGroup_DoMany() {
	var users singleflight.Group[int, string]
	names := users.DoMany(context.Background(), []int{42, 43}, 0, func(ctx context.Context, flights []*singleflight.Flight[int, string]) {
		for _, f := range flights { // one query for all of them
			f.End(fmt.Sprint("user ", f.Key()), nil)
		}
	})
	for _, n := range names {
		fmt.Println(n.Value, n.Err)
	}
	// Output:
	// user 42 <nil>
	// user 43 <nil>
}

func ExampleGroup_Overtake() {
	var users singleflight.Group[int, string]
	stored := "nobody"
	users.Do(context.Background(), 42, 0, func(ctx context.Context, f *singleflight.Flight[int, string]) (string, error) {
		users.Overtake(42, func() { stored = "Ada Lovelace" }) // by someone who knows better
		f.Commit(func() { stored = "Ada Byron" })
		return "Ada Byron", nil
	})
	fmt.Println(stored)
	// Output: Ada Lovelace
}

func ExampleGroup_Forget() {
	var users singleflight.Group[int, string]
	name, _ := users.Do(context.Background(), 42, 0, func(ctx context.Context, f *singleflight.Flight[int, string]) (string, error) {
		name := "Ada"
		users.Forget(42) // by someone who has just changed it
		fmt.Println("stored:", f.Commit(func() { fmt.Println("storing") }))
		return name, nil
	})
	fmt.Println("answered:", name)
	// Output:
	// stored: false
	// answered: Ada
}

func ExampleGroup_Keys() {
	var users singleflight.Group[int, string]
	users.Do(context.Background(), 42, 0, func(context.Context, *singleflight.Flight[int, string]) (string, error) {
		fmt.Println(users.Keys())
		return "Ada", nil
	})
	fmt.Println(users.Keys())
	// Output:
	// [42]
	// []
}

func ExampleFlight_Commit() {
	var users singleflight.Group[int, string]
	var mu sync.Mutex
	cache := map[int]string{}
	users.Do(context.Background(), 42, 0, func(ctx context.Context, f *singleflight.Flight[int, string]) (string, error) {
		name := "Ada"
		f.Commit(func() {
			mu.Lock()
			defer mu.Unlock()
			cache[42] = name
		})
		return name, nil
	})
	fmt.Println(cache)
	// Output: map[42:Ada]
}

func ExampleFlight_Seal() {
	var names singleflight.Group[int, string]
	asked := make(chan bool)
	var late sync.WaitGroup
	name, _ := names.Do(context.Background(), 42, 0, func(ctx context.Context, f *singleflight.Flight[int, string]) (string, error) {
		f.Seal() // the question goes out now: its answer may be too old for whoever comes later
		late.Go(func() {
			close(asked)
			name, _ := names.Do(context.Background(), 42, 0, func(context.Context, *singleflight.Flight[int, string]) (string, error) {
				return "Ada Lovelace", nil
			})
			fmt.Println(name)
		})
		<-asked
		return "Ada Byron", nil
	})
	fmt.Println(name)
	late.Wait()
	// Unordered output:
	// Ada Byron
	// Ada Lovelace
}

func ExampleGroup_Ask() {
	var group singleflight.Group[string, string]
	value, err := group.Ask(context.Background(), "key", func(context.Context, *singleflight.Flight[string, string]) (string, error) {
		return "asked once for each who comes one after the other", nil
	})
	fmt.Println(value, err)
	// Output: asked once for each who comes one after the other <nil>
}
