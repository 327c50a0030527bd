//! `musectl queue status`.

use muse_proto::v1::{GetQueueStatusRequest, ListWorkersRequest};

use crate::{
    arguments::{Output, QueueCommand},
    client::{Gateways, call},
    failure::Failure,
    output,
    view::queue::QueueView,
};

pub(crate) async fn run(
    command: &QueueCommand,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    let QueueCommand::Status = command;
    let mut admin = gateways.admin().await?;
    let status = admin
        .get_queue_status(call(GetQueueStatusRequest {}))
        .await?
        .into_inner();
    let workers = admin
        .list_workers(call(ListWorkersRequest {}))
        .await?
        .into_inner();
    let view = QueueView::new(&status, &workers);
    output::print(output, &view, || view.table())
}
