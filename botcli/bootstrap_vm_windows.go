package botcli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/skepdev/skep/bot/guest"
)

// host: the service runs as the system's account, which owns its files.
func (v vm) host() (func(string) error, func(context.Context, guest.Service) error, error) {
	return nil, func(_ context.Context, g guest.Service) error { return v.installService(g) }, nil
}

// installService has the service manager keep the bot running, from now on.
func (v vm) installService(g guest.Service) (err error) {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("the service manager: %w", err)
	}
	defer func() { err = errors.Join(err, m.Disconnect()) }()
	s, err := m.OpenService(serviceName)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		s, err = m.CreateService(serviceName, g.Exe, mgr.Config{StartType: mgr.StartAutomatic, DisplayName: "skep bot", Description: "A bot of " + g.Server}, "service")
	}
	if err != nil {
		return fmt.Errorf("the service %s: %w", serviceName, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	actions := []mgr.RecoveryAction{{Type: mgr.ServiceRestart, Delay: 2 * time.Second}}
	if err := s.SetRecoveryActions(actions, uint32((24 * time.Hour).Seconds())); err != nil {
		return fmt.Errorf("its restarts: %w", err)
	}
	if err := v.environment(g); err != nil {
		return fmt.Errorf("its environment: %w", err)
	}
	status, err := s.Query()
	if err != nil {
		return err
	}
	if status.State != svc.Stopped {
		return nil
	}
	return s.Start()
}

func (v vm) environment(g guest.Service) (err error) {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+serviceName, registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	vars := []string{envBotID + "=" + g.Bot, envIdentity + "=gce", "SWARMING_EXTERNAL_BOT_SETUP=1"}
	if v.metadata != metadataHost {
		vars = append(vars, envMetadata+"="+v.metadata)
	}
	return key.SetStringsValue("Environment", vars)
}
