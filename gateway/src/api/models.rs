//! `muse.v1.Models`.

use muse_proto::v1::{ListModelsRequest, ListModelsResponse, models_server::Models as ModelsApi};
use tonic::{Request, Response, Status};

use crate::{Error, models::Models};

/// See the module.
#[derive(Clone)]
pub struct ModelsService(Models);

impl ModelsService {
    /// Over the registry.
    pub fn new(models: Models) -> Self {
        Self(models)
    }
}

#[tonic::async_trait]
impl ModelsApi for ModelsService {
    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let models = self.0.all().await.map_err(Error::from)?;
        let default_model = self.0.default_of(&models);
        Ok(Response::new(ListModelsResponse {
            models: models.values().map(|model| model.as_ref().clone()).collect(),
            default_model,
        }))
    }
}
