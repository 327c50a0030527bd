//! What every Muse service shares: configuration, telemetry, health, shutdown, errors.
