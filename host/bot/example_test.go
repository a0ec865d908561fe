package bot_test

import (
	"fmt"
	"log"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skepdev/skep/host/bot"
)

// A bot for a device of a lab, with at most one processor and 2 GiB.
func ExampleStarter() {
	dir := "/var/lib/lab/bot1"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	quota, memory := int64(100000), int64(2<<30)
	b, err := bot.NewStarter(nil, "https://swarming.example.com").Start(bot.Config{
		BotID: "lab1-device1", WorkDirectory: dir,
		Resources: &specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Quota: &quota},
			Memory: &specs.LinuxMemory{Limit: &memory},
			Pids:   &specs.LinuxPids{Limit: 2000},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = b.Drain() }() // when the device is needed elsewhere
	log.Print("bot ended: ", b.Wait())
}

func ExampleDroneStarter() {
	dir, err := os.MkdirTemp("", "drone")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := &bot.DroneStarter{
		WorkingDir:   dir,
		StartBotFunc: func(bot.Config) (bot.Bot, error) { return bot.NewFakeBot(), nil }, // or Starter.Start
		BotConfigFunc: func(id, dir string) bot.Config {
			return bot.Config{BotID: "lab1-" + id, WorkDirectory: dir}
		},
		LogFunc: log.Printf,
	}
	b, err := s.Start("device1")
	if err != nil {
		log.Fatal(err)
	}
	_ = b.TerminateOrKill()
	fmt.Println(b.Wait())
	// Output: <nil>
}

func ExampleFakeBot() {
	b := bot.NewFakeBot()
	b.DrainFunc = func(b *bot.FakeBot) error { fmt.Println("finishes its task"); b.Stop(); return nil }
	_ = b.Drain()
	fmt.Println(b.Wait())
	// Output:
	// finishes its task
	// <nil>
}
