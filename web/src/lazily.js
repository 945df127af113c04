// A part of the page that is loaded when it is first shown.
import { useEffect, useState } from "preact/hooks";
import { attempt } from "./store.js";
import { html, Loading } from "./ui.js";

export function lazily(load) {
  let Loaded = null;
  return function Lazy(props) {
    const [, setReady] = useState(Loaded);
    useEffect(() => {
      if (Loaded) return;
      attempt(async () => {
        Loaded = (await load()).default;
        setReady(() => Loaded);
      });
    }, []);
    return Loaded ? html`<${Loaded} ...${props} />` : html`<${Loading} />`;
  };
}
