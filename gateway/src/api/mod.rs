//! The public gRPC services: thin. They take the tenant from the call, hand over to [`Jobs`](crate::jobs::Jobs) and
//! [`Models`](crate::models::Models), and put the answer into messages. No rule lives here.

mod admin;
mod generation;
mod models;
mod submit_jobs;

pub use self::{admin::AdminService, generation::GenerationService, models::ModelsService};
