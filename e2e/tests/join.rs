//! Link tokens over the real join door: a gateway and a trust anchor that are processes, and joiners that race and repeat.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::try_join_all;
use hawser_api::proto::tunnel::{JoinGateway, JoinReply, JoinRequest, JoinSide, LinkToken, join_reply};
use hawser_e2e::binary::hawser;
use hawser_e2e::{Fabric, Plan, eventually};
use hawser_tunnel::join::{Pinned, ask};
use hawser_tunnel::testing::Pki;
use hawser_tunnel::verify::AuthorityId;
use prost::Message;
use tokio::process::Command;

const GATEWAY: &str = "spiffe://east.hawser.test/ns/hawser-system/sa/gateway";
/// Joiners with one token; the door takes ten at once of one address, and one more each second.
const RACERS: u8 = 6;

#[expect(clippy::disallowed_methods, reason = "the daemons' clock is in a crate that this one may not use")]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// What `hawser link create` prints in east, for a cluster named north.
async fn token(fabric: &Fabric) -> Result<LinkToken> {
    let mut command = Command::new(hawser()?);
    command.args(["link", "create", "--to", "north", "--cluster", "east", "--state"]).arg(fabric.state());
    let made = command.kill_on_drop(true).output().await?;
    ensure!(made.status.success(), "hawser link create: {}", String::from_utf8_lossy(&made.stderr));
    let bytes = URL_SAFE_NO_PAD.decode(String::from_utf8(made.stdout)?.trim())?;
    Ok(LinkToken::decode(bytes.get(1..).context("an empty token")?)?)
}

/// What a cluster that has the token says of itself.
fn north(address: &str) -> JoinSide {
    JoinSide {
        cluster: "north".into(),
        trust_domain: "north.hawser.test".into(),
        bundle: Pki::new().bundle().to_document(),
        gateways: vec![JoinGateway { name: "g0".into(), address: address.into() }],
        region: String::new(),
    }
}

/// What the creator answers: its own side, or why not. Who is turned away at the door comes again.
async fn asked(token: &LinkToken, request: &JoinRequest) -> Result<Result<JoinSide, String>> {
    let pins = token.pins.iter().map(|pin| AuthorityId::try_from(pin.as_slice()));
    let expect = Pinned { identity: GATEWAY.parse()?, pins: pins.collect::<Result<_, _>>().ok().context("a bad pin")? };
    let gateway: SocketAddr = token.gateways.first().context("no gateway")?.parse()?;
    let bytes = request.encode_to_vec();
    let reply = eventually("an answer at the join door", async || Ok(ask(gateway, expect.clone(), &bytes, now).await?));
    match JoinReply::decode(reply.await?.as_slice())?.reply.context("an empty reply")? {
        join_reply::Reply::Side(side) => Ok(Ok(side)),
        join_reply::Reply::Refused(refused) => Ok(Err(refused.message)),
    }
}

async fn refused(token: &LinkToken, request: &JoinRequest, why: &str) -> Result<()> {
    let refusal = asked(token, request).await?.err().context("a token that was used linked another")?;
    ensure!(refusal.contains(why), "{refusal}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_who_race_with_one_token_one_is_linked_and_only_its_very_request_is_answered_again() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        fabric.up().await?;
        let token = token(fabric).await?;
        // All say the same, as whoever reads a request on its way can, so that nothing but the claim tells them apart.
        let (version, secret, side) = (1, token.secret.clone(), Some(north("127.77.0.1:7443")));
        let joiner =
            |claim| JoinRequest { version, secret: secret.clone(), claim: vec![claim; 32], side: side.clone() };
        let racers: Vec<_> = (1..=RACERS).map(joiner).collect();
        let answers = try_join_all(racers.iter().map(|racer| asked(&token, racer))).await?;
        let (won, lost): (Vec<_>, Vec<_>) = racers.iter().zip(&answers).partition(|(_, answer)| answer.is_ok());
        ensure!(won.len() == 1, "{} are linked", won.len());
        for (_, answer) in lost {
            ensure!(answer.as_ref().is_err_and(|refusal| refusal.contains("has been used")), "{answer:?}");
        }
        let (winner, answer) = won.first().context("nobody won")?;
        // Its request, repeated as it was, is answered as it was; with anything else in it, it is another's. Nor does a
        // trust anchor that is killed forget that.
        for round in 0..2 {
            ensure!(asked(&token, winner).await? == **answer, "round {round}");
            refused(&token, &joiner(99), "has been used").await?;
            for other in
                [north("127.77.0.1:7443"), JoinSide { region: "eu".into(), ..side.clone().unwrap_or_default() }]
            {
                refused(&token, &JoinRequest { side: Some(other), ..(*winner).clone() }, "").await?;
            }
            let anchor = fabric.daemon("east", "trust-anchor", "")?;
            anchor.kill()?;
            fabric.replaced(&anchor).await?;
        }
        fabric.on_record("east", "link", "north (north.hawser.test)").await?;
        fabric.trust(&["audit", "verify"]).await?;
        Ok(())
    })
    .await
}
