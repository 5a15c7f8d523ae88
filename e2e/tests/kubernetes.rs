//! The control planes that other tests stand on are real ones, and the faults before them are those that were asked for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hawser_e2e::kubernetes::faults::{Fault, Rule};
use hawser_e2e::kubernetes::objects::{self, ReadyPod};
use hawser_e2e::kubernetes::{ControlPlane, Faults};
use hawser_e2e::{eventually, within};
use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::{Api, Client, Error};
use serde_json::json;

/// A kind with a rule that only an API server that speaks CEL enforces.
const WIDGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.hawser.dev}
spec:
  group: test.hawser.dev
  scope: Namespaced
  names: {kind: Widget, plural: widgets}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {low: {type: integer}, high: {type: integer}}
            x-kubernetes-validations:
            - {rule: 'self.low <= self.high', message: low must not be above high}
          status:
            type: object
            properties: {seen: {type: boolean}}
";

fn widget(low: u32, high: u32) -> String {
    format!(
        "{{apiVersion: test.hawser.dev/v1, kind: Widget, metadata: {{name: w}}, spec: {{low: {low}, high: {high}}}}}"
    )
}

async fn config_map(client: &Client, namespace: &str, name: &str) -> Result<ConfigMap, Error> {
    let map = ConfigMap {
        metadata: kube::core::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        ..Default::default()
    };
    Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &map).await
}

/// The HTTP status with which an API server, or what stands before it, refused.
fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Result<u16> {
    match result {
        Err(Error::Api(status)) => Ok(status.code),
        other => bail!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn two_clusters_stand_side_by_side_with_service_addresses_of_their_own() -> Result<()> {
    let mut networks = Vec::new();
    for name in ["west", "east"] {
        let plane = ControlPlane::shared(name).await?;
        let client = plane.client().await?;
        let version = client.apiserver_version().await?;
        ensure!(
            version.minor.trim_end_matches('+').parse::<u32>()? >= 33,
            "an API server of 1.33 or later: {version:?}"
        );
        let namespace = objects::namespace(&client, "side").await?;
        let service = json!({
            "metadata": { "name": "checkout" },
            "spec": { "ports": [{ "port": 80 }], "ipFamilyPolicy": "RequireDualStack" },
        });
        let services: Api<Service> = Api::namespaced(client, &namespace);
        let made = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        let addresses = made.spec.and_then(|spec| spec.cluster_ips).context("no addresses")?;
        ensure!(addresses.len() == 2, "one address of each family: {addresses:?}");
        networks.push(addresses[0].split('.').take(2).map(str::to_owned).collect::<Vec<_>>());
        let listed = plane.kubectl(&["get", "services", "-n", &namespace, "-o", "name"], "").await?;
        ensure!(listed == "service/checkout\n", "{listed}");
    }
    ensure!(networks[0] != networks[1], "both clusters give addresses of {networks:?}");
    Ok(())
}

#[tokio::test]
async fn a_custom_resource_that_breaks_a_cel_rule_is_refused_with_the_rule_s_message() -> Result<()> {
    let plane = ControlPlane::shared("west").await?;
    let namespace = objects::namespace(&plane.client().await?, "cel").await?;
    plane.kubectl(&["apply", "--server-side", "-f", "-"], WIDGETS).await?;
    plane.kubectl(&["wait", "--for=condition=Established", "crd/widgets.test.hawser.dev"], "").await?;
    let apply = ["apply", "--server-side", "-n", &namespace, "-f", "-"];
    eventually("widgets to be served", async || plane.kubectl(&apply, &widget(1, 2)).await).await?;
    let refused = plane.kubectl(&apply, &widget(3, 2)).await.expect_err("an object that breaks the rule");
    ensure!(refused.to_string().contains("low must not be above high"), "{refused:#}");
    // The status is another's to write: what is said of it with the spec is dropped.
    let both = widget(1, 2).replace("spec:", "status: {seen: true}, spec:");
    plane.kubectl(&apply, &both).await?;
    let seen = ["get", "widget", "w", "-n", &namespace, "-o", "jsonpath={.status.seen}"];
    ensure!(plane.kubectl(&seen, "").await?.is_empty(), "a status came with the spec");
    let patch = r#"{"status": {"seen": true}}"#;
    plane
        .kubectl(&["patch", "widget", "w", "-n", &namespace, "--subresource=status", "--type=merge", "-p", patch], "")
        .await?;
    ensure!(plane.kubectl(&seen, "").await? == "true", "the status was not written");
    Ok(())
}

#[tokio::test]
async fn a_field_that_another_applied_is_kept_from_who_does_not_insist() -> Result<()> {
    let client = ControlPlane::shared("west").await?.client().await?;
    let namespace = objects::namespace(&client, "apply").await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let apply = async |manager: &str, force: bool, key: &str, value: &str| {
        let map =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": { key: value } });
        let params = PatchParams { force, ..PatchParams::apply(manager) };
        maps.patch("m", &params, &Patch::Apply(map)).await
    };
    apply("one", false, "a", "1").await?;
    apply("two", false, "b", "2").await?;
    ensure!(code(apply("two", false, "a", "3").await)? == 409, "two managers of one field");
    let data = apply("two", true, "a", "3").await?.data.unwrap_or_default();
    // `b` was two's and is no longer applied by anybody.
    ensure!(data.into_iter().eq([("a".to_owned(), "3".to_owned())]), "fields are pruned with their last owner");
    Ok(())
}

#[tokio::test]
async fn a_ready_pod_is_an_endpoint_and_one_that_is_not_ready_is_said_to_be() -> Result<()> {
    let client = ControlPlane::shared("east").await?.client().await?;
    let namespace = objects::namespace(&client, "endpoints").await?;
    let service = json!({
        "metadata": { "name": "checkout" },
        "spec": { "selector": { "app": "checkout" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    });
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    let pod = ReadyPod {
        namespace: &namespace,
        name: "checkout-0",
        labels: &[("app", "checkout")],
        address: "10.1.0.7".parse()?,
        service_account: "default",
    };
    pod.create(&client).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
    let of_service = ListParams::default().labels("kubernetes.io/service-name=checkout");
    let is_ready = async |expected: bool| {
        let listed = slices.list(&of_service).await?;
        let endpoint = listed.items.iter().flat_map(|slice| &slice.endpoints).next();
        let endpoint = endpoint.context("no endpoint")?;
        ensure!(endpoint.addresses == ["10.1.0.7"], "{endpoint:?}");
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
        ensure!(ready == Some(expected), "ready: {ready:?}");
        Ok(())
    };
    eventually("an endpoint that is ready", async || is_ready(true).await).await?;
    objects::set_ready(&client, &namespace, "checkout-0", None).await?;
    eventually("an endpoint that is not", async || is_ready(false).await).await
}

async fn review(client: &Client, token: &str, audience: &str) -> Result<TokenReviewStatus> {
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let answer = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    answer.status.context("no status")
}

#[tokio::test]
async fn a_token_is_good_for_its_audience_alone_and_for_as_long_as_its_pod() -> Result<()> {
    let client = ControlPlane::shared("east").await?.client().await?;
    let namespace = objects::namespace(&client, "tokens").await?;
    objects::service_account(&client, &namespace, "checkout").await?;
    let pod = ReadyPod {
        namespace: &namespace,
        name: "checkout-0",
        labels: &[],
        address: "10.1.0.8".parse()?,
        service_account: "checkout",
    };
    let pod = pod.create(&client).await?;
    let token = objects::token(&client, (&namespace, "checkout"), Some(&pod), &["hawser.dev/east"]).await?;
    let good = review(&client, &token, "hawser.dev/east").await?;
    ensure!(good.authenticated == Some(true), "{good:?}");
    let user = good.user.context("no user")?;
    ensure!(user.username.as_deref() == Some(&format!("system:serviceaccount:{namespace}:checkout")), "{user:?}");
    let uids = user.extra.and_then(|mut extra| extra.remove("authentication.kubernetes.io/pod-uid"));
    ensure!(uids == pod.metadata.uid.map(|uid| vec![uid]), "the token names another pod: {uids:?}");
    let other = review(&client, &token, "hawser.dev/west").await?;
    ensure!(other.authenticated != Some(true), "good for another audience: {other:?}");
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    pods.delete("checkout-0", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    eventually("the token to end with its pod", async || {
        let after = review(&client, &token, "hawser.dev/east").await?;
        ensure!(after.authenticated != Some(true), "still good");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_namespace_goes_with_all_that_is_in_it_and_garbage_with_its_owner() -> Result<()> {
    let client = ControlPlane::shared("west").await?.client().await?;
    let namespace = objects::namespace(&client, "garbage").await?;
    let owner = config_map(&client, &namespace, "owner").await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let owned = json!({ "metadata": { "name": "owned", "ownerReferences": [
        { "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid },
    ] } });
    maps.create(&PostParams::default(), &serde_json::from_value(owned)?).await?;
    maps.delete("owner", &DeleteParams::default()).await?;
    within(Duration::from_secs(60), "what was owned to go", async || {
        ensure!(maps.get_opt("owned").await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    config_map(&client, &namespace, "last").await?;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client);
    namespaces.delete(&namespace, &DeleteParams::default()).await?;
    within(Duration::from_secs(60), "the namespace to go", async || {
        ensure!(namespaces.get_opt(&namespace).await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn requests_are_delayed_refused_dropped_and_lost_as_the_rules_say() -> Result<()> {
    let plane = ControlPlane::shared("west").await?;
    let namespace = objects::namespace(&plane.client().await?, "faults").await?;
    let faults = Faults::before(&plane).await?;
    let client = faults.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    config_map(&client, &namespace, "through").await?;
    for status in [409, 410, 429, 500] {
        faults.add(Rule::every(Fault::Answer(status)).method(Method::GET).on("/configmaps/through").times(2));
        ensure!(code(maps.get("through").await)? == status, "the first");
        ensure!(code(maps.get("through").await)? == status, "the second");
        maps.get("through").await.with_context(|| format!("the third after two times {status}"))?;
    }
    faults.add(Rule::every(Fault::Delay(Duration::from_secs(2))).times(1));
    let begun = Instant::now();
    maps.get("through").await?;
    ensure!(begun.elapsed() >= Duration::from_secs(2), "not delayed: {:?}", begun.elapsed());
    faults.add(Rule::every(Fault::Drop).method(Method::POST));
    ensure!(!matches!(config_map(&client, &namespace, "dropped").await, Ok(_) | Err(Error::Api(_))), "answered");
    faults.clear();
    faults.add(Rule::every(Fault::Lose).method(Method::POST));
    ensure!(!matches!(config_map(&client, &namespace, "lost").await, Ok(_) | Err(Error::Api(_))), "answered");
    faults.clear();
    ensure!(maps.get_opt("dropped").await?.is_none(), "what was dropped has come through");
    ensure!(maps.get_opt("lost").await?.is_some(), "only the answer was to be lost");
    let writes: Vec<_> = faults.seen().into_iter().filter(|seen| seen.is_write()).map(|seen| seen.status).collect();
    ensure!(writes == [Some(http::StatusCode::CREATED), None, None], "{writes:?}");
    faults.forget();
    ensure!(faults.count(|_| true) == 0, "not forgotten");
    Ok(())
}

#[tokio::test]
async fn watches_are_cut_in_the_middle_and_told_that_they_are_gone() -> Result<()> {
    use futures_util::TryStreamExt;
    let plane = ControlPlane::shared("east").await?;
    let namespace = objects::namespace(&plane.client().await?, "watches").await?;
    let faults = Faults::before(&plane).await?;
    let client = faults.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let from = config_map(&client, &namespace, "first").await?.metadata.resource_version.context("no version")?;
    let begin = async || {
        let mut events = Box::pin(maps.watch(&WatchParams::default(), &from).await?);
        config_map(&client, &namespace, &format!("m{}", faults.count(|_| true))).await?;
        events.try_next().await?.context("no event")?;
        anyhow::Ok(events)
    };
    let mut cut = begin().await?;
    faults.cut_watches();
    let end = tokio::time::timeout(Duration::from_secs(5), async {
        // What was on its way may still come.
        while let Ok(Some(_)) = cut.try_next().await {}
    });
    end.await.context("a watch that was cut goes on")?;
    let mut gone = begin().await?;
    faults.expire_watches();
    let told = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some(event) = gone.try_next().await? {
            if let kube::core::WatchEvent::Error(status) = event {
                return Ok(status.code);
            }
        }
        bail!("it ended without a word")
    });
    ensure!(told.await?? == 410, "told something else");
    ensure!(faults.count(|seen| seen.is_watch()) == 2, "{:?}", faults.seen());
    Ok(())
}

#[tokio::test]
async fn state_outlives_a_killed_api_server_and_goes_back_with_a_restored_etcd() -> Result<()> {
    let plane = ControlPlane::start("north").await?;
    let client = plane.client().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    config_map(&client, "default", "before").await?;
    let saved = plane.save()?;
    config_map(&client, "default", "after").await?;
    let old = plane.apiserver.pid()?;
    plane.restart_apiserver().await?;
    ensure!(plane.apiserver.pid()? != old, "the same process");
    maps.get("before").await?;
    maps.get("after").await.context("a restart forgets nothing")?;
    plane.restore(&saved).await?;
    maps.get("before").await.context("what was saved")?;
    ensure!(maps.get_opt("after").await?.is_none(), "it came after what was saved");
    // The controllers work on the older state.
    let namespace = objects::namespace(&client, "restored").await?;
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client, &namespace);
    within(Duration::from_secs(60), "a service account", async || Ok(accounts.get("default").await?)).await?;
    let dir = plane.kubeconfig().parent().context("no directory")?.to_owned();
    let pids = [plane.etcd.pid()?, plane.apiserver.pid()?, plane.controllers.pid()?];
    drop(plane);
    ensure!(!pids.into_iter().any(hawser_e2e::process::is_alive), "processes are left");
    ensure!(!dir.exists(), "files are left");
    Ok(())
}
