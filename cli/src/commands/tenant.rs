//! `musectl tenant …`.

use muse_proto::v1::{ListTenantsRequest, SetTenantRequest, Tenant};
use tonic::Status;

use crate::{
    arguments::{Output, TenantCommand},
    client::{Gateways, call},
    failure::Failure,
    output,
    view::tenant::{TenantView, list},
};

/// Tenants asked for at once.
const PAGE: u32 = 100;

pub(crate) async fn run(
    command: TenantCommand,
    mut gateways: Gateways,
    output: Output,
) -> Result<(), Failure> {
    let tenants = match command {
        TenantCommand::List => all(&mut gateways).await?,
        TenantCommand::Set {
            name,
            settings,
            reset,
        } => {
            let request = SetTenantRequest {
                name,
                settings: Some(settings.settings()),
                reset,
            };
            let response = gateways
                .admin()
                .await?
                .set_tenant(call(request))
                .await?
                .into_inner();
            vec![
                response
                    .tenant
                    .ok_or_else(|| Status::internal("the gateway sent no tenant"))?,
            ]
        }
    };
    let views: Vec<TenantView> = tenants.iter().map(TenantView::from).collect();
    output::print(output, &views, || list(&views))
}

async fn all(gateways: &mut Gateways) -> Result<Vec<Tenant>, Failure> {
    let mut admin = gateways.admin().await?;
    let mut tenants = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListTenantsRequest {
            page_size: PAGE,
            page_token,
        };
        let page = admin.list_tenants(call(request)).await?.into_inner();
        tenants.extend(page.tenants);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(tenants);
        }
    }
}
