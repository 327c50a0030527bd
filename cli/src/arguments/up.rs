//! `musectl up`.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use crate::cluster::{Override, Sizes};

#[derive(Args, Debug)]
pub(crate) struct UpArguments {
    /// The bundle to serve
    #[arg(long, value_name = "FOLDER", default_value = "bundles/demo")]
    pub(crate) bundle: PathBuf,
    /// Gateways
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) gateways: usize,
    /// Text encoders
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) encoders: usize,
    /// Workers of the base stage
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) base_workers: usize,
    /// Workers of the super-resolution stage [default: 1, or 0 for a bundle without that stage]
    #[arg(long, value_name = "N")]
    pub(crate) superres_workers: Option<usize>,
    /// Port of the first gateway; 0 takes a free one, as for all else [default: 7700, with COMMAND 0]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Keep jobs, pictures and logs in this folder [default: a temporary one, removed at the end]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where muse-gateway, muse-encoder and muse-worker lie [default: beside musectl]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// A setting of parts, such as gateway.queue.lease_ms=5000; roles: gateway, encoder, worker, base, superres
    #[arg(long = "set", value_name = "ROLE.SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<Override>,
    /// Leave a part that dies down
    #[arg(long)]
    pub(crate) no_restart: bool,
    /// Do not list the endpoints
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Run this against the cluster (MUSE_ENDPOINT, MUSE_ENDPOINTS, MUSE_ENCODER_ENDPOINTS and MUSE_OPS_ENDPOINTS are set
    /// for it), then stop everything and exit with its code
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl UpArguments {
    /// `has_superres`: whether the bundle has that stage.
    pub(crate) fn sizes(&self, has_superres: bool) -> Sizes {
        Sizes {
            gateways: self.gateways,
            encoders: self.encoders,
            base_workers: self.base_workers,
            superres_workers: self.superres_workers.unwrap_or(usize::from(has_superres)),
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("there must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}
