//! The queue alone: workers compute nothing, so that what is measured is accepting, leasing and finishing jobs.

mod depth;
mod load;
mod peers;
mod scale;
mod served;
mod side_by_side;
mod workers;

pub(crate) use scale::measure as scale;

use crate::{
    arguments::{Arguments, Settings},
    report::Section,
};

/// At each of `depths` (jobs that wait, in rising order), and beside the peers.
pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    depths: &[u64],
) -> anyhow::Result<Vec<Section>> {
    Ok(vec![
        side_by_side::measure(arguments, settings).await?,
        depth::measure(arguments, settings, depths).await?,
    ])
}
