// The running server, as its clients are told of it, and what their tests ask of it.

export const SERVER = process.env.CHATTABLE_URL;
export const URL = `${SERVER}/v1`;
export const KEY = process.env.CHATTABLE_KEY;
export const MODELS = ["scripted_agent", "default"]; // an agent, and an alias of a language model; both do as they are told

/** Ask until the user has asked too often in this minute of the clock: what was raised then. */
export async function refused(ask) {
  for (let times = 0; times < 2000; times += 1) {
    try {
      await ask();
    } catch (error) {
      return error;
    }
  }
  throw new Error("nothing was refused");
}

/** The state of a run, once it has ended. */
export async function ended(runId) {
  for (;;) {
    const answer = await fetch(`${SERVER}/api/v1/runs/${runId}`, { headers: { authorization: `Bearer ${KEY}` } });
    const run = await answer.json();
    if (run.status !== "running") return run.status;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
