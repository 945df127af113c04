"""Translates what it is told, into one language or several at once."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from app.agent import BaseAgent, Completion, Message, ParallelPrompt, Prompt

INSTRUCTION = "Translate what the user says into {language}. Say the translation and nothing else."


class Wanted(BaseModel):
    """What a user can set."""

    language: str = Field("en", min_length=1, max_length=200, description="into which; several with commas between")


class Translator(BaseAgent):
    id = "translator"
    params: Wanted

    async def chat(self, query: str | Message) -> str | Completion:
        text = query if isinstance(query, str) else query.content
        languages = [name.strip() for name in self.params.language.split(",") if name.strip()] or ["en"]
        if len(languages) == 1:
            return await self._into(languages[0]).acall(text, is_stream=True)
        said = await self.translate(text, languages)
        return "\n".join(f"{name}: {each}" for name, each in zip(languages, said, strict=True))

    async def translate(self, text: str, target_langs: Sequence[str]) -> list[Completion]:
        """The text in each of these languages, all asked for at once; the first error, if one fails."""
        said = await ParallelPrompt(prompts=[self._into(name) for name in target_langs]).acall(text)
        for each in said:
            if each.error:
                raise each.error
        return said

    def _into(self, language: str) -> Prompt:
        return self.create_prompt(system_prompt=INSTRUCTION.format(language=language))
