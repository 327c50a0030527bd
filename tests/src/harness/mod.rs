//! The fault harness: a real cluster, real faults from a seed, clients and an operator who go on all the same, a history of
//! what everyone saw, and a checker that says whether a queue may have such a history.
//!
//! [`schedule`], [`checker`], [`resp`] and [`scripts`] are pure; the rest does what they say and takes down what comes of it.

pub mod checker;
pub mod clients;
pub mod fairness;
pub mod faults;
pub mod history;
pub mod load;
pub mod operator;
pub mod proxy;
pub mod report;
pub mod resp;
pub mod run;
pub mod schedule;
pub mod scripts;
pub mod server;
pub mod stage;
