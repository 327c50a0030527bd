//! The queue alone: workers compute nothing, so that what is measured is accepting, leasing and finishing jobs.

mod bare_call;
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
    measure::say,
    report::Section,
};

/// At each of `depths` (jobs that wait, in rising order), and beside the peers.
pub(crate) async fn measure(
    arguments: &Arguments,
    settings: &Settings,
    depths: &[u64],
) -> anyhow::Result<Vec<Section>> {
    let beside = side_by_side::measure(arguments, settings).await?;
    // The deepest queue takes minutes: nobody should wait for it to see this, or lose it.
    say(&beside.markdown());
    let deep = depth::measure(arguments, settings, depths).await?;
    Ok(vec![beside, deep])
}
