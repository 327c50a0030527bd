//! The gateway: public API, jobs in Redis, worker hub, results.
