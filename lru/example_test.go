package lru_test

import (
	"fmt"

	"github.com/shoalcache/shoal/lru"
)

func Example() {
	pages := lru.Cache[string, string]{MaxCost: 20}
	add := func(name, text string) { pages.Add(name, text, int64(len(text))) }
	add("/", "home")
	add("/about", "about us")
	pages.Get("/")
	add("/news", "nothing new")
	for name, text := range pages.All() {
		fmt.Println(name, text)
	}
	// Output:
	// /news nothing new
	// / home
}

func ExampleCache_Add() {
	c := lru.Cache[string, int]{MaxCost: 10}
	fmt.Println(c.Add("a", 1, 5), c.Add("a", 2, 6), c.Add("b", 3, 11))
	fmt.Println(c.Len(), c.Cost())
	// Output:
	// true true false
	// 1 6
}

func ExampleCache_Get() {
	c := lru.Cache[string, int]{MaxCost: 2}
	c.Add("a", 1, 1)
	c.Add("b", 2, 1)
	c.Get("a")
	c.Add("c", 3, 1)
	fmt.Println(c.Get("a"))
	fmt.Println(c.Get("b"))
	// Output:
	// 1 true
	// 0 false
}

func ExampleCache_Peek() {
	c := lru.Cache[string, int]{MaxCost: 2}
	c.Add("a", 1, 1)
	c.Add("b", 2, 1)
	c.Peek("a") // is no use of it
	c.Add("c", 3, 1)
	fmt.Println(c.Peek("a"))
	// Output: 0 false
}

func ExampleCache_Remove() {
	var c lru.Cache[string, int]
	c.Add("a", 1, 1)
	fmt.Println(c.Remove("a"), c.Remove("a"))
	// Output: true false
}

func ExampleCache_Oldest() {
	var c lru.Cache[string, int]
	c.Add("a", 1, 1)
	c.Add("b", 2, 1)
	c.Get("a")
	fmt.Println(c.Oldest())
	// Output: b 2 true
}

func ExampleCache_RemoveOldest() {
	c := lru.Cache[string, int]{MaxCost: 100}
	c.OnEvicted = func(key string, value int) { fmt.Println("evicted", key, value) }
	c.Add("a", 1, 40)
	c.Add("b", 2, 40)
	for c.MaxCost = 50; c.Cost() > c.MaxCost; {
		c.RemoveOldest()
	}
	// Output: evicted a 1
}

func ExampleCache_All() {
	var c lru.Cache[string, int]
	c.Add("a", 1, 1)
	c.Add("b", 2, 1)
	for key, value := range c.All() {
		fmt.Println(key, value)
	}
	// Output:
	// b 2
	// a 1
}

func ExampleCache_Len() {
	var c lru.Cache[string, int]
	c.Add("a", 1, 5)
	c.Add("b", 2, 7)
	fmt.Println(c.Len())
	// Output: 2
}

func ExampleCache_Cost() {
	var c lru.Cache[string, int]
	c.Add("a", 1, 5)
	c.Add("b", 2, 7)
	fmt.Println(c.Cost())
	// Output: 12
}
